"""Draws matrices as heat maps."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from famx.monitoring.metrics import HeatMap, RowGroup

# black through purple and orange to pale yellow, equally spaced
COLOURS = (
    (0.0, 0.0, 0.02),
    (0.34, 0.06, 0.43),
    (0.73, 0.21, 0.33),
    (0.98, 0.55, 0.04),
    (0.99, 1.0, 0.64),
)
GREY = 0.6
ROW_HEIGHT = 12  # pixels, enough for a name
# width in pixels of a matrix with few columns; with its names it fills a card of TensorBoard
MIN_WIDTH = 240


class _Scale(NamedTuple):
    """The values of the darkest and of the palest colour."""

    low: float
    high: float
    is_logarithmic: bool


def heat_map(picture: HeatMap) -> UInt8[np.ndarray, "height width 3"]:
    """Draws a matrix from dark to pale with the names of its rows, its columns and its colours.

    Colours go from the 2 % quantile to the 98 % quantile, since a few outliers would leave the
    other values dark. If both quantiles are printed with the same digits, colours go from the
    smallest to the largest value; if these are too, from 0, or from the smallest value if that is
    negative. Colours are logarithmic if no value is negative and the quantiles of the positive
    values differ by a factor of more than 30; 0 is then as dark as the smallest positive value.
    Values that are not finite are grey. The limits include a value that is to be marked.
    """
    values = picture.values.float()
    is_finite = values.isfinite()
    scale = _scale(values[is_finite])
    if picture.mark is not None:
        value, _ = picture.mark
        scale = scale._replace(low=min(scale.low, value), high=max(scale.high, value))
    # titles of groups are lines of their own, and white
    titles, matrix_lines = _lines(picture)
    pixels = np.full((len(titles), values.shape[1], 3), 255, dtype=np.uint8)
    pixels[matrix_lines] = _paint(_positions(values, scale))

    # the canvas: names on the left, the matrix, then three rows of text and colour bar below it
    names = _row_names(titles)
    cell_width = _cell_width(picture)
    width = cell_width * values.shape[1]
    canvas = Image.new("RGB", (names.width + width, names.height + 3 * ROW_HEIGHT), "white")
    canvas.paste(names, (0, 0))
    canvas.paste(_resized(pixels, width, names.height), (names.width, 0))
    _draw_columns(canvas, picture.groups, names.width, cell_width)

    # below the matrix
    caption = picture.columns + ("" if is_finite.all() else "; grey: not defined")
    if scale.is_logarithmic and picture.mark is not None:
        caption += "; logarithmic"
    draw = ImageDraw.Draw(canvas)
    draw.text((names.width, names.height), caption, fill="black", font=ImageFont.load_default())
    _draw_colour_bar(canvas, scale, picture.mark, (names.width, names.height + ROW_HEIGHT))
    return np.array(canvas)


def _lines(picture: HeatMap) -> tuple[tuple[str, ...], list[int]]:
    """Returns the texts left of the matrix, and the lines on which its rows are drawn."""
    if not picture.groups:
        return picture.rows, list(range(len(picture.rows)))
    texts: list[str] = []
    matrix_lines = []
    rows = iter(picture.rows)
    for group in picture.groups:
        texts.append(group.title)
        for row in islice(rows, group.size):
            matrix_lines.append(len(texts))
            texts.append(f"  {row}")
    return tuple(texts), matrix_lines


def _cell_width(picture: HeatMap) -> int:
    """Returns the width of a column in pixels, enough for the names of columns."""
    font = ImageFont.load_default()
    width = max(2, MIN_WIDTH // picture.values.shape[1])
    for group in picture.groups:
        for name in group.columns:
            width = max(width, ceil(font.getlength(name)) + 6)
    return width


def _draw_columns(
    canvas: Image.Image, groups: Sequence[RowGroup], left: int, cell_width: int
) -> None:
    """Draws the names of each group's columns beside its title."""
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default()
    line = 0
    for group in groups:
        for i, name in enumerate(group.columns):
            x = left + (i + 0.5) * cell_width - font.getlength(name) / 2
            draw.text((x, line * ROW_HEIGHT), name, fill="black", font=font)
        line += 1 + group.size


def _draw_colour_bar(
    canvas: Image.Image, scale: _Scale, mark: tuple[float, str] | None, corner: tuple[int, int]
) -> None:
    """Draws the colours with their limits below, and a line at the value that is marked.

    Args:
        corner: left and top of the bar, which extends to the right end of the canvas.
    """
    left, top = corner
    width = canvas.width - left
    colour_bar = _paint(torch.linspace(0, 1, MIN_WIDTH)[None])
    canvas.paste(_resized(colour_bar, width, ROW_HEIGHT), corner)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default()

    # texts below the bar: alignment from 0 (left) to 1 (right)
    middle = 0.5
    text = "logarithmic" if scale.is_logarithmic else ""
    if mark is not None:
        value, text = mark
        middle = _positions(torch.tensor([[value]]), scale).item()
        x = left + middle * (width - 1)
        draw.line([x, top, x, top + ROW_HEIGHT - 1], fill="white", width=3)
        draw.line([x, top, x, top + ROW_HEIGHT - 1], fill="black", width=1)
    low = f"{scale.low:.3g}"
    high = f"{scale.high:.3g}"
    below = top + ROW_HEIGHT
    draw.text((left, below), low, fill="black", font=font)
    draw.text((canvas.width - font.getlength(high), below), high, fill="black", font=font)
    # the text in the middle must not cover the limits
    first = left + font.getlength(low) + 6
    last = canvas.width - font.getlength(high) - 6 - font.getlength(text)
    x = left + middle * width - font.getlength(text) / 2
    draw.text((max(first, min(x, last)), below), text, fill="black", font=font)


def _scale(finite: Float[Tensor, " n"]) -> _Scale:
    """Chooses the limits of the colours for the finite values of a matrix."""
    low, high = _limits(finite)
    low_positive, high_positive = _limits(finite[finite > 0])
    if (finite >= 0).all() and 0 < 30 * low_positive < high_positive:
        return _Scale(low_positive, high_positive, is_logarithmic=True)
    return _Scale(low, high, is_logarithmic=False)


def _limits(values: Float[Tensor, " n"]) -> tuple[float, float]:
    """Returns two limits that are printed differently: quantiles, or else the extremes."""
    if not len(values):
        return 0.0, 0.0
    for quantiles in ([0.02, 0.98], [0.0, 1.0]):
        low, high = values.quantile(torch.tensor(quantiles), interpolation="nearest").tolist()
        if f"{low:.3g}" != f"{high:.3g}":
            return low, high
    return min(low, 0.0), high


def _positions(
    values: Float[Tensor, "rows columns"], scale: _Scale
) -> Float[Tensor, "rows columns"]:
    """Returns the position of each value on the colour scale, 0 to 1; NaN if it is not finite."""
    is_finite = values.isfinite()
    limits = torch.tensor([scale.low, scale.high])
    if scale.is_logarithmic:
        values = values.log()
        limits = limits.log()
    low, high = limits
    positions = ((values - low) / (high - low).clamp(min=1e-30)).clamp(0, 1)
    return torch.where(is_finite, positions, torch.nan)


def _paint(positions: Float[Tensor, "rows columns"]) -> UInt8[np.ndarray, "rows columns 3"]:
    """Returns the colours of positions from 0 to 1; grey for NaN."""
    colours = torch.tensor(COLOURS)
    positions = positions * (len(colours) - 1)
    below = positions.nan_to_num().floor().clamp(max=len(colours) - 2)
    index = below.long()
    rgb = torch.lerp(colours[index], colours[index + 1], (positions - below)[..., None])
    return (255 * rgb.nan_to_num(GREY)).round().byte().numpy()


def _resized(pixels: UInt8[np.ndarray, "rows columns 3"], width: int, height: int) -> Image.Image:
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)


# a run draws the names of the same rows at every evaluation
@lru_cache(maxsize=16)
def _row_names(rows: tuple[str, ...]) -> Image.Image:
    """Draws the names of a matrix's rows."""
    font = ImageFont.load_default()
    width = ceil(max(font.getlength(row) for row in rows)) + 6
    image = Image.new("RGB", (width, ROW_HEIGHT * len(rows)), "white")
    draw = ImageDraw.Draw(image)
    for i, row in enumerate(rows):
        draw.text((2, i * ROW_HEIGHT), row, fill="black", font=font)
    return image
