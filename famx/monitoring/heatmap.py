"""Draws matrices as heat maps."""

from functools import lru_cache
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from famx.monitoring.metrics import HeatMap

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
    Values that are not finite are grey.
    """
    values = picture.values.float()
    is_finite = values.isfinite()
    scale = _scale(values[is_finite])
    matrix = _paint(_positions(values, scale))
    colour_bar = _paint(torch.linspace(0, 1, MIN_WIDTH)[None])

    # the canvas: names on the left, the matrix, then three rows of text and colour bar below it
    names = _row_names(picture.rows)
    font = ImageFont.load_default()
    width = max(2, MIN_WIDTH // values.shape[1]) * values.shape[1]
    size = (names.width + width, names.height + 3 * ROW_HEIGHT)
    canvas = Image.new("RGB", size, "white")
    canvas.paste(names, (0, 0))
    canvas.paste(_resized(matrix, width, names.height), (names.width, 0))
    bar_top = names.height + ROW_HEIGHT
    canvas.paste(_resized(colour_bar, width, ROW_HEIGHT), (names.width, bar_top))

    # texts: alignment from 0 (left) to 1 (right), line below the matrix
    caption = picture.columns + ("" if is_finite.all() else "; grey: not defined")
    kind = "logarithmic" if scale.is_logarithmic else ""
    texts = (
        (0.0, 0, caption),
        (0.0, 2, f"{scale.low:.3g}"),
        (0.5, 2, kind),
        (1.0, 2, f"{scale.high:.3g}"),
    )
    draw = ImageDraw.Draw(canvas)
    for alignment, line, text in texts:
        x = names.width + alignment * (width - font.getlength(text))
        draw.text((x, names.height + line * ROW_HEIGHT), text, fill="black", font=font)
    return np.array(canvas)


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
