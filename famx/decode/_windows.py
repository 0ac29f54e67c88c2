"""Scores of recordings of any length: overlapping windows, of which each gives its middle."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from famx.nn.encoding import BLANK_ID
from famx.notation import SAMPLE_RATE, Seconds, UserError

MIN_WINDOW = 2.0  # seconds
CONTEXT = 4.0  # seconds of a window on each side that the next window scores again, at most
BATCH = 4  # windows that pass through the model at once
PROBED = 10 * SAMPLE_RATE  # lengths by which the step of a frontend is measured


def check_window(option: str, seconds: Seconds) -> None:
    """Checks the length of a window.

    Args:
        option: how the user set it, for the message.

    Raises:
        UserError: it is shorter than `MIN_WINDOW`, or not finite.
    """
    if not MIN_WINDOW <= seconds < math.inf:
        raise UserError(f"{option}={seconds} must be at least {MIN_WINDOW} seconds, and finite")


class FrameStep(NamedTuple):
    """By how many samples a signal grows until it has more frames, and how many more.

    The frames of a signal without its first `samples` are those of the signal without its first
    `frames`, apart from the context and the normalisation of the frontend.
    """

    samples: int
    frames: int

    @property
    def seconds(self) -> Seconds:
        return self.samples / SAMPLE_RATE


def frame_step(n_frames: Callable[[Int[Tensor, " n"]], Int[Tensor, " n"]]) -> FrameStep:
    """Measures the step of a frontend of speech by its number of frames.

    Args:
        n_frames: returns the number of frames of signals of these lengths.

    Raises:
        UserError: the steps differ, or are longer than some seconds.
    """
    lengths = torch.arange(SAMPLE_RATE, SAMPLE_RATE + PROBED)
    added = n_frames(lengths).diff()
    jumps = added.nonzero()[:, 0]
    steps = jumps.diff()
    if not len(steps) or not (steps == steps[0]).all():
        raise UserError(
            "the frontend has no constant step between frames, so that a recording longer than a "
            "window cannot be recognised, and words have no times"
        )
    return FrameStep(int(steps[0]), int(added[jumps[0]]))


@torch.inference_mode()
def windowed_scores(
    model: nn.Module, signal: Float[Tensor, " n"], step: FrameStep, window: Seconds
) -> Float[Tensor, "t v"]:
    """Returns the scores of all frames of a signal, as if it had passed the model at once.

    Two windows overlap by twice the context, and scores of the second one begin in the middle half
    of that, where both have the longest run of blanks: a word between two runs is from one window.
    The scores equal those of one pass if the model sees at most half the context to each side.

    Args:
        window: seconds of a window; the context is `CONTEXT`, or a quarter of it if that is less.
    """
    # sizes in steps of the frontend
    size = max(4, int(window / step.seconds))
    context = max(1, min(int(CONTEXT / step.seconds), size // 4))
    hop = size - 2 * context
    starts = [0]
    while (starts[-1] + size) * step.samples < len(signal):
        starts.append(starts[-1] + hop)
    seams = _Seams(hop * step.frames, context * step.frames)
    for first in range(0, len(starts), BATCH):
        windows = []
        for start in starts[first : first + BATCH]:
            begin = start * step.samples
            windows.append(signal[begin : begin + size * step.samples])
        lengths = torch.tensor([len(part) for part in windows], device=signal.device)
        rows, n_frames = model(pad_sequence(windows, batch_first=True), lengths)
        for row, length in zip(rows, n_frames.tolist(), strict=True):
            seams.append(row[:length])
    return torch.cat(seams.parts)


class _Seams:
    """Joins the scores of windows.

    Args:
        hop: frames from the beginning of a window to that of the next one.
        context: half the frames of their overlap.
    """

    def __init__(self, hop: int, context: int):
        self.hop = hop
        self.context = context
        self.parts: list[Tensor] = []
        self.overlap = 0

    def append(self, scores: Float[Tensor, "t v"]) -> None:
        """Appends the scores of the next window."""
        n_frames = len(scores)
        if self.parts:
            # the last part begins where its window was joined, and ends where its window ends
            before = self.parts.pop()
            start = len(before) - self.overlap
            cut = self._cut(before[start:], scores)
            self.parts.append(before[: start + cut])
            scores = scores[cut:]
        self.parts.append(scores)
        self.overlap = n_frames - self.hop

    def _cut(self, before: Float[Tensor, "_ v"], after: Float[Tensor, "_ v"]) -> int:
        """Returns the frame of an overlap from which the second window is used."""
        middle_half = slice(self.context // 2, self.context // 2 + self.context)
        first = before[middle_half].log_softmax(-1)
        second = after[middle_half].log_softmax(-1)
        both_blank = (first.argmax(-1) == BLANK_ID) & (second.argmax(-1) == BLANK_ID)
        middle = _middle_of_longest_run(both_blank.tolist())
        if middle is None:
            middle = int((first + second)[:, BLANK_ID].argmax())
        return self.context // 2 + middle


def cut_at_blanks(scores: Float[Tensor, "t v"], limit: int) -> list[Float[Tensor, "_ v"]]:
    """Cuts scores into pieces of at most `limit` frames, each in the longest run of blanks.

    A run is of frames whose best token is the blank, within the last half of the longest piece; the
    piece ends before its middle, so that the next one begins with a blank. The best alignment of
    all pieces is then that of all frames. Without any blank the piece has `limit` frames.
    """
    pieces = []
    while len(scores) > limit:
        candidates = scores[limit // 2 : limit]
        is_blank = (candidates.argmax(-1) == BLANK_ID).tolist()
        middle = _middle_of_longest_run(is_blank)
        cut = limit if middle is None else limit // 2 + middle
        pieces.append(scores[:cut])
        scores = scores[cut:]
    return [*pieces, scores]


def _middle_of_longest_run(values: list[bool]) -> int | None:
    """Returns the middle of the longest run of True, None if there is none."""
    best_length = 0
    middle = None
    length = 0
    for i, value in enumerate(values):
        length = length + 1 if value else 0
        if length > best_length:
            best_length = length
            middle = i - length // 2
    return middle
