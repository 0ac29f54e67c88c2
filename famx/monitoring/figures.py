"""Figures that matplotlib draws without a display: matrices with names on both axes."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Pixels = UInt8[np.ndarray, "height width 3"]

DPI = 100
FONT_SIZE = 9.0
SMALL = 7.5  # of names of rows and of tokens
# inches
BAR_WIDTH = 0.12
BAR_MARGIN = 1.15  # width of a bar of colours with its numbers and label
ROW_HEIGHT = 0.16  # of a name
MAX_NAME = 14  # characters
MAX_NUMBERED = 16  # rows of a matrix whose values are written into its cells
MISSING = "□"  # in place of a character that no font has
# fonts for characters that the default font does not have, where they are installed
OTHER_FONTS = ("Noto Sans CJK JP", "Noto Sans", "Arial Unicode MS", "Hiragino Sans", "Unifont")


class Axis(NamedTuple):
    """The positions along an axis of a matrix.

    Args:
        title: what the positions are.
        names: name of each position; empty for numbers.
        size: value at the end of the axis, which begins with 0, if it has numbers.
    """

    title: str
    names: tuple[str, ...] = ()
    size: float = 1.0


def draw_matrix(
    values: Float[Tensor, "rows columns"],
    title: str,
    rows: Axis,
    columns: Axis,
    limit: float | None = None,
    legend: str = "",
    is_numbered: bool = False,
) -> Pixels:
    """Draws a matrix from white (0) to dark; values that are not defined are grey.

    Args:
        limit: value of the darkest colour; None for the 98 % quantile, since a few large values
            would leave the others pale.
        legend: what the values are.
        is_numbered: whether the values are written into the cells, in percent, of a small matrix.
    """
    # axes of names have the room that these need
    width = _extent(columns)
    height = _extent(rows)
    is_short = all(len(name) <= 2 for name in columns.names)
    left = 0.4 + _room(rows)
    bottom = 0.4 + (ROW_HEIGHT if is_short else _room(columns))
    figure = new_figure(left + width + BAR_MARGIN, bottom + height + 0.4)
    total_width, total_height = figure.get_size_inches()
    box = (left / total_width, bottom / total_height, width / total_width, height / total_height)
    axes = figure.add_axes(box)
    axes.set_title(printable(title), fontsize=FONT_SIZE, loc="left", parse_math=False)
    axes.set_facecolor("0.8")

    # the matrix
    finite = values[values.isfinite()]
    largest = limit
    if largest is None:
        largest = float(finite.quantile(0.98)) if len(finite) else 0.0
    largest = largest or 1.0
    extent = (0.0, _end(columns), _end(rows), 0.0)
    image = show(axes, values, "Blues", extent, (0.0, largest))
    if is_numbered and len(values) <= MAX_NUMBERED:
        _write_numbers(axes, values, largest)
    axes.set_xlabel(columns.title, fontsize=FONT_SIZE)
    axes.set_ylabel(rows.title, fontsize=FONT_SIZE)
    label_axis(axes.xaxis, columns, width, is_vertical=not is_short)
    label_axis(axes.yaxis, rows, height)
    has_larger = bool((finite > largest).any())
    colour_bar(axes, image, legend, extend="max" if has_larger else "neither")
    return pixels(figure)


def printable(text: str) -> str:
    """Replaces the characters that no installed font has."""
    known = _characters()
    return "".join(character if ord(character) in known else MISSING for character in text)


# figures


def new_figure(width: float, height: float) -> "Figure":
    # imported late, since commands that draw nothing start faster; without pyplot there is neither
    # a display nor a figure that outlives its picture
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def pixels(figure: "Figure") -> Pixels:
    canvas: Any = figure.canvas
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def show(
    axes: "Axes",
    values: Float[Tensor, "rows columns"],
    colours: str,
    extent: tuple[float, float, float, float],
    limits: tuple[float, float],
) -> "AxesImage":
    return axes.imshow(
        values.numpy(),
        cmap=colours,
        aspect="auto",
        interpolation="nearest",
        extent=extent,
        origin="lower" if extent[2] < extent[3] else "upper",
        vmin=limits[0],
        vmax=limits[1],
    )


def colour_bar(axes: "Axes", image: "AxesImage", label: str, extend: str = "neither") -> None:
    """Draws the colours on the right of axes."""
    figure: Any = axes.figure
    box = axes.get_position()
    width = figure.get_size_inches()[0]
    bar_axes = figure.add_axes((box.x1 + 0.1 / width, box.y0, BAR_WIDTH / width, box.height))
    bar = figure.colorbar(image, cax=bar_axes, extend=extend)
    bar.ax.tick_params(labelsize=SMALL)
    bar.set_label(label, fontsize=SMALL)


def _write_numbers(axes: "Axes", values: Float[Tensor, "rows columns"], limit: float) -> None:
    for row, line in enumerate(values.tolist()):
        for column, value in enumerate(line):
            if value != value or value < 0.005:
                continue
            axes.text(
                column + 0.5,
                row + 0.5,
                f"{100 * value:.0f}",
                fontsize=SMALL,
                color="white" if value > limit / 2 else "black",
                horizontalalignment="center",
                verticalalignment="center",
            )


# axes with names


def _extent(axis: Axis) -> float:
    """Returns the length of an axis of a matrix in inches."""
    return min(9.0, max(4.0, ROW_HEIGHT * len(axis.names)))


def _room(axis: Axis) -> float:
    """Returns the width of the names of an axis in inches."""
    return max([0.4, *(0.1 + text_width(_shortened(name)) for name in axis.names)])


def _end(axis: Axis) -> float:
    return float(len(axis.names)) if axis.names else axis.size


def label_axis(axis: Any, labels: Axis, inches: float, is_vertical: bool = False) -> None:
    """Writes the names of positions, of every n-th one if there is no room for all."""
    if not labels.names:
        axis.set_tick_params(labelsize=FONT_SIZE)
        return
    every = -(-len(labels.names) * 0.85 * ROW_HEIGHT // inches)
    positions = range(0, len(labels.names), max(1, int(every)))
    axis.set_ticks(
        [position + 0.5 for position in positions],
        [_shortened(labels.names[position]) for position in positions],
        fontsize=SMALL,
        family=font_families(),
        rotation=90 if is_vertical else 0,
        parse_math=False,
    )
    axis.set_tick_params(length=2)


def _shortened(name: str) -> str:
    return printable(name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…")


# fonts


@lru_cache(maxsize=1)
def font_families() -> list[str]:
    """Returns the default font and others for what it does not have, as far as installed."""
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in OTHER_FONTS if name in installed)]


@lru_cache(maxsize=1)
def _characters() -> frozenset[int]:
    """Returns the characters of all fonts that texts are drawn with."""
    from matplotlib import font_manager

    known: set[int] = set()
    for family in font_families():
        font = font_manager.get_font(font_manager.findfont(family))
        known.update(font.get_charmap())
    return frozenset(known)


@lru_cache(maxsize=4096)
def text_width(text: str) -> float:
    """Returns the width of a name in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    size = FontProperties(family=font_families(), size=SMALL)
    width, _, _ = text_to_path.get_text_width_height_descent(text, size, ismath=False)
    return float(width) / 72
