"""Axis letters, units, and the types and messages that every room shares.

Axes, the same in jaxtyping and einops: b batch, t time of the queries, s time of the memory,
d d_model, h heads, k head_dim, f mel bins, n raw samples, v vocabulary, w window.
"""

import difflib
import enum
import math
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

Seconds = float
Hertz = float

SAMPLE_RATE = 16_000

Kind = Literal["conv", "attention", "embedding", "norm", "other"]
Subwords = Literal["bpe", "unigram"]
Layout = Literal["equal", "log", "split"]


class UserError(ValueError):
    """A mistake of the user, in one sentence: commands print it alone and exit with status 2."""


class StreamError(UserError):
    """Data that cannot be reached any more; a run that meets it in training saves its state."""


def describe_exception(error: BaseException, file: str | Path) -> str:
    """Describes an exception in one line, with the last line of `file` in its traceback."""
    first_line = str(error).strip().partition("\n")[0]
    name = type(error).__name__
    message = f"{name}: {first_line}" if first_line else name
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == str(file):
            return f"{message} ({Path(file).name}, line {frame.lineno})"
    return message


def suggest(word: object, choices: Iterable[str]) -> str:
    """Returns the end of an error message about `word`: the closest choice, if any, and all."""
    ordered = sorted(choices)
    if not ordered:
        return ", it has none at all"
    close = difflib.get_close_matches(str(word), ordered, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}? (choices: {', '.join(ordered)})"
    return f"; choose from {', '.join(ordered)}"


class Modality(enum.Enum):
    """Speech, text or images: the kind of data of a data set, a frontend and a task."""

    SPEECH = "speech"
    TEXT = "text"
    IMAGE = "images"

    @property
    def unit(self) -> str:
        """The unit of an amount of data: seconds of audio, tokens of text, rows of pixels."""
        return {Modality.SPEECH: "second", Modality.TEXT: "token", Modality.IMAGE: "row"}[self]

    def amount(self, length: int) -> float:
        """Converts a length in samples, tokens or rows to seconds, tokens or rows."""
        return length / SAMPLE_RATE if self is Modality.SPEECH else float(length)


class TensorInfo(NamedTuple):
    """Describes a parameter tensor for momentum rules and spectra.

    Args:
        shape: shape of the parameter.
        kind: kind of the module that owns it.
        base: base momentum, which a rule may change, in [0, 1).
        n_bands: number of frequency bands in which its gradient is measured.
        layout: how the bands divide the spectrum.
    """

    shape: tuple[int, ...]
    kind: Kind = "other"
    base: float = 0.9
    n_bands: int = 8
    layout: Layout = "equal"

    @property
    def numel(self) -> int:
        return math.prod(self.shape)
