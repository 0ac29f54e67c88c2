"""Draws an utterance: its spectrogram with its tokens, and what a model finds in each frame."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from famx.decode._surfaces import WORD_MARK
from famx.frontend._mel import HOP, N_FFT, WINDOW, mel_filters
from famx.monitoring.figures import (
    FONT_SIZE,
    ROW_HEIGHT,
    SMALL,
    Axis,
    Pixels,
    colour_bar,
    font_families,
    label_axis,
    new_figure,
    pixels,
    printable,
    show,
    text_width,
)
from famx.monitoring.utterance import SPACE, FrameMap, TimedToken, Utterance
from famx.notation import SAMPLE_RATE, Seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# inches
WIDTH = 10.0
LEFT = 0.95
RIGHT = 0.85
LINE_HEIGHT = 0.17  # of the texts above a spectrogram
LEVELS = 3  # lines of the tokens above a spectrogram
LEVEL_HEIGHT = 0.15
SPECTROGRAM_HEIGHT = 2.2
GAP = 0.34
N_MELS = 80
RANGE = 70.0  # decibels from the loudest cell to the darkest colour
TICKS = (250, 500, 1000, 2000, 4000, 8000)  # Hz
LINE_LENGTH = 106  # characters of a text


class Label(NamedTuple):
    """A token above a spectrogram: its name, its time, and its line, from 0."""

    text: str
    seconds: Seconds
    level: int


def draw_utterance(utterance: Utterance) -> Pixels:
    """Draws the spectrogram of an utterance with its tokens, and its maps over the same seconds."""
    heights = [_height(frame_map) for frame_map in utterance.maps]
    labels = _labels(utterance)
    n_levels = 1 + max((label.level for label in labels), default=-1)
    lines = _lines(utterance)
    above = LINE_HEIGHT * (len(lines) + 1) + LEVEL_HEIGHT * n_levels
    height = above + SPECTROGRAM_HEIGHT + sum(heights) + GAP * len(heights) + 0.5
    figure = new_figure(WIDTH, height)
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
    return pixels(figure)


def _panel(figure: "Figure", top: float, height: float) -> "Axes":
    """Adds axes below a place in inches, as wide as all others."""
    width, total = figure.get_size_inches()
    box = (LEFT / width, (top - height) / total, (width - LEFT - RIGHT) / width, height / total)
    axes = figure.add_axes(box)
    axes.tick_params(labelsize=FONT_SIZE)
    return axes


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
            family=["DejaVu Sans Mono", *font_families()],
            verticalalignment="top",
            parse_math=False,
        )


def _draw_spectrogram(axes: "Axes", utterance: Utterance) -> None:
    decibels = _log_mel(utterance.signal)
    top = _mel(SAMPLE_RATE // 2)
    extent = (0.0, utterance.seconds, 0.0, top)
    image = show(axes, decibels.T, "magma", extent, (-RANGE, 0.0))
    axes.autoscale(False)
    axes.set_yticks([_mel(hertz) for hertz in TICKS], [f"{hertz:,}" for hertz in TICKS])
    axes.set_ylabel("Hz (mel scale)", fontsize=FONT_SIZE)
    colour_bar(axes, image, "dB")


def _log_mel(signal: Float[Tensor, " n"]) -> Float[Tensor, "t f"]:
    """Returns mel energies in decibels below the loudest one."""
    n_windows = 1 + max(0, len(signal) - WINDOW + HOP - 1) // HOP
    padded = pad(signal, (0, (n_windows - 1) * HOP + WINDOW - len(signal)))
    spectrum = torch.fft.rfft(padded.unfold(0, WINDOW, HOP) * torch.hann_window(WINDOW), N_FFT)
    energy = spectrum.abs().square() @ mel_filters(N_MELS)
    return 10 * (energy / energy.max().clamp(min=1e-30)).clamp(min=1e-10).log10()


def _mel(hertz: int) -> float:
    return float(2595 * np.log10(1 + hertz / 700))


def _labels(utterance: Utterance) -> list[Label]:
    """Places the tokens above the spectrogram; words, where tokens have no room on two lines."""
    inches_per_second = (WIDTH - LEFT - RIGHT) / utterance.seconds
    labels = _place(utterance.tokens, inches_per_second, 2)
    if len(labels) == len(utterance.tokens):
        return labels
    words = list(_words(utterance.tokens))
    # some languages have no spaces
    return _place(words if len(words) > 1 else utterance.tokens, inches_per_second, LEVELS)


def _place(tokens: Iterable[TimedToken], inches_per_second: float, n_levels: int) -> list[Label]:
    """Places names at the middle of their times, each on the first line where it touches no other.

    A name that has no room on any line is left out.
    """
    ends = [-1.0] * n_levels  # of the last name on each line, in inches
    labels = []
    for token in tokens:
        seconds = (token.start + token.end) / 2
        text = printable(token.text)
        half = text_width(text) / 2 + 0.015
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
            family=font_families(),
            horizontalalignment="center",
            verticalalignment="bottom",
            parse_math=False,
            annotation_clip=False,
        )


def _draw_map(axes: "Axes", frame_map: FrameMap, seconds: float) -> None:
    """Draws a map over frames, from white (0) to dark (its limit)."""
    values = frame_map.values
    extent = (0.0, seconds, float(len(values)), 0.0)
    image = show(axes, values, "Blues", extent, (0.0, frame_map.limit))
    axes.set_title(frame_map.title, fontsize=FONT_SIZE, loc="left", pad=3)
    label_axis(axes.yaxis, Axis("", frame_map.rows), _height(frame_map))
    colour_bar(axes, image, "")


def _height(frame_map: FrameMap) -> float:
    """Returns the height of a panel in inches."""
    return min(4.5, max(0.45, ROW_HEIGHT * len(frame_map.rows)))
