"""A transcript with times, as subtitles too."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from famx.decode._alignment import TimedText
from famx.notation import Seconds

Timestamps = Literal["word", "char"]

MAX_PAUSE = 1.0  # seconds between two words of a subtitle
MAX_SECONDS = 6.0  # of a subtitle
MAX_CHARACTERS = 80  # of a subtitle


@dataclass(frozen=True)
class Transcript:
    """The text of a recording, and the times of its parts.

    Args:
        text: the text.
        units: its words, or its characters without spaces, with their times.
    """

    text: str
    units: list[TimedText] = field(default_factory=list)


def subtitles(words: Sequence[TimedText]) -> str:
    """Returns words as subtitles in the format SubRip (srt)."""
    groups: list[list[TimedText]] = []
    for word in words:
        if not groups or not _fits(groups[-1], word):
            groups.append([])
        groups[-1].append(word)
    blocks = []
    for number, group in enumerate(groups, 1):
        text = " ".join(word.text for word in group)
        times = f"{_clock(group[0].start)} --> {_clock(group[-1].end)}"
        blocks.append(f"{number}\n{times}\n{text}\n")
    return "\n".join(blocks)


def _fits(group: Sequence[TimedText], word: TimedText) -> bool:
    """Returns whether a word belongs to the same subtitle."""
    n_characters = sum(len(other.text) + 1 for other in group) + len(word.text)
    return (
        word.start - group[-1].end <= MAX_PAUSE
        and word.end - group[0].start <= MAX_SECONDS
        and n_characters <= MAX_CHARACTERS
    )


def _clock(seconds: Seconds) -> str:
    """Returns a time as hours:minutes:seconds,milliseconds."""
    milliseconds = round(1000 * seconds)
    minutes, remainder = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{remainder // 1000:02},{remainder % 1000:03}"
