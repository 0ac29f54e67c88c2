"""Pictures of an utterance and of attention, drawn by matplotlib without a display."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import pad

from famx.decode._surfaces import WORD_MARK
from famx.frontend._mel import HOP, N_FFT, WINDOW, mel_filters
from famx.monitoring.utterance import SPACE, FrameMap, TimedToken, Utterance
from famx.notation import SAMPLE_RATE, Seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

DPI = 100
FONT_SIZE = 9.0
SMALL = 7.5  # of names of rows and of tokens
# inches
WIDTH = 10.0
LEFT = 0.95
RIGHT = 0.85
BAR_WIDTH = 0.12
LINE_HEIGHT = 0.17  # of the texts above a spectrogram
LEVELS = 3  # lines of the tokens above a spectrogram
LEVEL_HEIGHT = 0.15
ROW_HEIGHT = 0.16
SPECTROGRAM_HEIGHT = 2.2
GAP = 0.34
N_MELS = 80
RANGE = 70.0  # decibels from the loudest cell to the darkest colour
TICKS = (250, 500, 1000, 2000, 4000, 8000)  # Hz
LINE_LENGTH = 106  # characters of a text
MISSING = "□"  # in place of a character that no font has
# fonts for characters that the default font does not have, where they are installed
OTHER_FONTS = ("Noto Sans CJK JP", "Noto Sans", "Arial Unicode MS", "Hiragino Sans", "Unifont")


class Label(NamedTuple):
    """A token above a spectrogram: its name, its time, and its line, from 0."""

    text: str
    seconds: Seconds
    level: int


class Axis(NamedTuple):
    """The positions along an axis of an attention map.

    Args:
        title: what the positions are.
        names: name of each position; empty for numbers.
        size: value at the end of the axis, which begins with 0, if it has numbers.
    """

    title: str
    names: tuple[str, ...] = ()
    size: float = 1.0


def draw_utterance(utterance: Utterance) -> UInt8[np.ndarray, "height width 3"]:
    """Draws the spectrogram of an utterance with its tokens, and its maps over the same seconds."""
    heights = [_height(frame_map) for frame_map in utterance.maps]
    labels = _labels(utterance)
    n_levels = 1 + max((label.level for label in labels), default=-1)
    lines = _lines(utterance)
    above = LINE_HEIGHT * (len(lines) + 1) + LEVEL_HEIGHT * n_levels
    height = above + SPECTROGRAM_HEIGHT + sum(heights) + GAP * len(heights) + 0.5
    figure = _figure(WIDTH, height)
    _draw_texts(figure, lines)

    # panels from the top to the bottom
    top = height - above
    axes = _panel(figure, top, SPECTROGRAM_HEIGHT)
    _draw_spectrogram(axes, utterance)
    _draw_tokens(axes, utterance, labels)
    top -= SPECTROGRAM_HEIGHT
    for frame_map, panel_height in zip(utterance.maps, heights, strict=True):
        axes.tick_params(labelbottom=False)
        axes = _panel(figure, top - GAP, panel_height)
        _draw_map(axes, frame_map, utterance.seconds)
        top -= GAP + panel_height
    axes.set_xlabel("seconds", fontsize=FONT_SIZE)
    return _pixels(figure)


def draw_attention(
    shares: Float[Tensor, "q s"], title: str, rows: Axis, columns: Axis
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws an attention map: each row is a position that reads, each column one that is read.

    The darkest colour is the 98 % quantile of the values, since few large ones would leave the
    others pale; grey is a row that reads nothing.
    """
    # axes of tokens have the room that these need
    width = _extent(columns)
    height = _extent(rows)
    is_short = all(len(name) <= 2 for name in columns.names)
    left = 0.4 + _room(rows)
    bottom = 0.4 + (ROW_HEIGHT if is_short else _room(columns))
    figure = _figure(left + width + RIGHT + 0.3, bottom + height + 0.4)
    total_width, total_height = figure.get_size_inches()
    box = (left / total_width, bottom / total_height, width / total_width, height / total_height)
    axes = figure.add_axes(box)
    axes.set_title(printable(title), fontsize=FONT_SIZE, loc="left", parse_math=False)
    finite = shares[shares.isfinite()]
    limit = float(finite.quantile(0.98)) if len(finite) else 0.0
    extent = (0.0, _end(columns), _end(rows), 0.0)
    image = _show(axes, shares, "Blues", extent, (0.0, limit or 1.0))
    axes.set_facecolor("0.8")
    axes.set_xlabel(f"input: {columns.title}", fontsize=FONT_SIZE)
    axes.set_ylabel(f"output: {rows.title}", fontsize=FONT_SIZE)
    _label(axes.xaxis, columns, width, rotation=0 if is_short else 90)
    _label(axes.yaxis, rows, height)
    _colour_bar(figure, axes, image, "‖∂output / ∂input‖, share of its row", extend="max")
    return _pixels(figure)


def printable(text: str) -> str:
    """Replaces the characters that no installed font has."""
    known = _characters()
    return "".join(character if ord(character) in known else MISSING for character in text)


# figures


def _figure(width: float, height: float) -> "Figure":
    # imported late, since commands that draw nothing start faster; without pyplot there is neither
    # a display nor a figure that outlives its picture
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def _pixels(figure: "Figure") -> UInt8[np.ndarray, "height width 3"]:
    canvas: Any = figure.canvas
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def _panel(figure: "Figure", top: float, height: float) -> "Axes":
    """Adds axes below a place in inches, as wide as all others."""
    width, total = figure.get_size_inches()
    box = (LEFT / width, (top - height) / total, (width - LEFT - RIGHT) / width, height / total)
    axes = figure.add_axes(box)
    axes.tick_params(labelsize=FONT_SIZE)
    return axes


def _show(
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


def _colour_bar(
    figure: "Figure", axes: "Axes", image: "AxesImage", label: str, extend: str = "neither"
) -> None:
    """Draws the colours on the right of axes."""
    box = axes.get_position()
    width = figure.get_size_inches()[0]
    beside = figure.add_axes((box.x1 + 0.1 / width, box.y0, BAR_WIDTH / width, box.height))
    bar = figure.colorbar(image, cax=beside, extend=extend)
    bar.ax.tick_params(labelsize=SMALL)
    bar.set_label(label, fontsize=SMALL)


# an utterance


def _lines(utterance: Utterance) -> list[str]:
    """Returns the name and both texts of an utterance, each cut after two lines."""
    lines = [f"{utterance.name}   ({utterance.seconds:.2f} s)"]
    for heading, text in (("reference", utterance.reference), ("hypothesis", utterance.hypothesis)):
        wrapped = textwrap.wrap(text, LINE_LENGTH, max_lines=2, placeholder=" …") or [""]
        lines.append(f"{heading:12}{wrapped[0]}")
        lines += [f"{'':12}{line}" for line in wrapped[1:]]
    return lines


def _draw_texts(figure: "Figure", lines: Sequence[str]) -> None:
    """Writes lines above the panels."""
    height = figure.get_size_inches()[1]
    for number, line in enumerate(lines):
        figure.text(
            0.1 / WIDTH,
            1 - (0.06 + LINE_HEIGHT * number) / height,
            printable(line),
            fontsize=FONT_SIZE,
            family=["DejaVu Sans Mono", *_families()],
            verticalalignment="top",
            parse_math=False,
        )


def _draw_spectrogram(axes: "Axes", utterance: Utterance) -> None:
    decibels = _log_mel(utterance.signal)
    top = _mel(SAMPLE_RATE / 2)
    extent = (0.0, utterance.seconds, 0.0, top)
    image = _show(axes, decibels.T, "magma", extent, (-RANGE, 0.0))
    axes.autoscale(False)
    axes.set_yticks([_mel(hertz) for hertz in TICKS], [f"{hertz:,}" for hertz in TICKS])
    axes.set_ylabel("Hz (mel scale)", fontsize=FONT_SIZE)
    _colour_bar(axes.figure, axes, image, "dB")


def _log_mel(signal: Float[Tensor, " n"]) -> Float[Tensor, "t f"]:
    """Returns mel energies in decibels below the loudest one."""
    n_windows = 1 + max(0, len(signal) - WINDOW + HOP - 1) // HOP
    padded = pad(signal, (0, (n_windows - 1) * HOP + WINDOW - len(signal)))
    spectrum = torch.fft.rfft(padded.unfold(0, WINDOW, HOP) * torch.hann_window(WINDOW), N_FFT)
    energy = spectrum.abs().square() @ mel_filters(N_MELS)
    return 10 * (energy / energy.max().clamp(min=1e-30)).clamp(min=1e-10).log10()


def _mel(hertz: float) -> float:
    return float(2595 * np.log10(1 + hertz / 700))


def _labels(utterance: Utterance) -> list[Label]:
    """Places the tokens above the spectrogram; words, where tokens have no room on two lines."""
    inches_per_second = (WIDTH - LEFT - RIGHT) / utterance.seconds
    labels = _place(utterance.tokens, inches_per_second, 2)
    if len(labels) == len(utterance.tokens):
        return labels
    return _place(_words(utterance.tokens), inches_per_second, LEVELS)


def _place(
    tokens: Iterable[TimedToken], inches_per_second: float, n_levels: int
) -> list[Label]:
    """Places names at the middle of their times, each on the first line where it touches no other.

    A name that has no room on any line is left out.
    """
    ends = [-1.0] * n_levels  # of the last name on each line, in inches
    labels = []
    for token in tokens:
        seconds = (token.start + token.end) / 2
        text = printable(token.text)
        half = _width(text) / 2 + 0.015
        for level, end in enumerate(ends):
            if end <= inches_per_second * seconds - half:
                ends[level] = inches_per_second * seconds + half
                labels.append(Label(text, seconds, level))
                break
    return labels


def _words(tokens: Iterable[TimedToken]) -> Iterator[TimedToken]:
    """Joins tokens to words, of which a space or the mark of a word begins a new one."""
    word: TimedToken | None = None
    for token in tokens:
        text = token.text.lstrip(SPACE + WORD_MARK)
        if word is not None and text != token.text:
            yield word
            word = None
        if word is not None:
            word = TimedToken(word.text + text, word.start, token.end)
        elif text:
            word = token._replace(text=text)
    if word is not None:
        yield word


def _draw_tokens(axes: "Axes", utterance: Utterance, labels: Sequence[Label]) -> None:
    """Draws a line at the beginning of each token, and the names that have been placed."""
    for token in utterance.tokens:
        axes.axvline(token.start, color="white", linewidth=0.5, alpha=0.55)
    for label in labels:
        axes.annotate(
            label.text,
            xy=(label.seconds, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, 2 + 72 * LEVEL_HEIGHT * label.level),
            textcoords="offset points",
            fontsize=SMALL,
            family=_families(),
            horizontalalignment="center",
            verticalalignment="bottom",
            parse_math=False,
            annotation_clip=False,
        )


def _draw_map(axes: "Axes", frame_map: FrameMap, seconds: float) -> None:
    """Draws a map over frames, from white (0) to dark (its limit)."""
    values = frame_map.values
    extent = (0.0, seconds, float(len(values)), 0.0)
    image = _show(axes, values, "Blues", extent, (0.0, frame_map.limit))
    axes.set_title(frame_map.title, fontsize=FONT_SIZE, loc="left", pad=3)
    _label(axes.yaxis, Axis("", frame_map.rows), _height(frame_map))
    _colour_bar(axes.figure, axes, image, "")


def _height(frame_map: FrameMap) -> float:
    """Returns the height of a panel in inches."""
    return min(4.5, max(0.45, ROW_HEIGHT * len(frame_map.rows)))


# axes of tokens


def _extent(axis: Axis) -> float:
    """Returns the length of an axis of an attention map in inches."""
    return min(9.0, max(4.0, ROW_HEIGHT * len(axis.names)))


def _room(axis: Axis) -> float:
    """Returns the width of the names of an axis in inches."""
    return max([0.4, *(0.1 + _width(_shortened(name)) for name in axis.names)])


def _end(axis: Axis) -> float:
    return float(len(axis.names)) if axis.names else axis.size


def _label(axis: Any, labels: Axis, inches: float, rotation: float = 0) -> None:
    """Writes the names of positions, of every second, third, ... one if there is no room for all."""
    if not labels.names:
        axis.set_tick_params(labelsize=FONT_SIZE)
        return
    every = -(-len(labels.names) * 0.85 * ROW_HEIGHT // inches)
    shown = range(0, len(labels.names), max(1, int(every)))
    axis.set_ticks(
        [position + 0.5 for position in shown],
        [_shortened(labels.names[position]) for position in shown],
        fontsize=SMALL,
        family=_families(),
        rotation=rotation,
        parse_math=False,
    )
    axis.set_tick_params(length=2)


def _shortened(name: str) -> str:
    return printable(name if len(name) <= 10 else name[:9] + "…")


# fonts


@lru_cache(maxsize=1)
def _families() -> list[str]:
    """Returns the default font and others for what it does not have, as far as installed."""
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in OTHER_FONTS if name in installed)]


@lru_cache(maxsize=1)
def _characters() -> frozenset[int]:
    """Returns the characters of all fonts that texts are drawn with."""
    from matplotlib import font_manager

    known: set[int] = set()
    for family in _families():
        font = font_manager.get_font(font_manager.findfont(family))
        known.update(font.get_charmap())
    return frozenset(known)


@lru_cache(maxsize=4096)
def _width(text: str) -> float:
    """Returns the width of a token in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    size = FontProperties(family=_families(), size=SMALL)
    width, _, _ = text_to_path.get_text_width_height_descent(text, size, ismath=False)
    return float(width) / 72
