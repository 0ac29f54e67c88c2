"""Rows of manifests, whose formats are `_tsv_rows`, `_json_rows` and `_kaldi_rows`."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from famx.notation import Seconds, UserError


class Row(NamedTuple):
    """A recording, or a part of one.

    Attributes:
        name: name in messages and in tables of hypotheses.
        text: text as it is written.
        speaker: empty if it is not known.
        file: absolute path of the file.
        seconds: duration, None if the header of the file has to be read.
        start: where a part begins in the file, in seconds; None for a complete file.
    """

    name: str
    text: str
    speaker: str
    file: str
    seconds: Seconds | None = None
    start: Seconds | None = None


def numbered_lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yields the lines of a file that are not empty, each after its place for messages.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    try:
        # with or without the byte order mark of Windows
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{file}, line {number}", line.rstrip("\r")


def parse_seconds(written: str, name: str, location: str) -> Seconds:
    """Parses a number of seconds, at least 0.

    Args:
        written: the number as it is written.
        name: what the number is, for messages.
        location: file and line, for messages.

    Raises:
        UserError: it is not such a number.
    """
    try:
        seconds = float(written)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UserError(
            f"{location}: {name} is {written!r}, expected a number of seconds, at least 0"
        )
    return seconds


def parse_duration(written: str, name: str, location: str) -> Seconds:
    """Parses a duration, which must be more than 0 seconds; see `parse_seconds`."""
    seconds = parse_seconds(written, name, location)
    if not seconds:
        raise UserError(f"{location}: {name} is {written!r}, expected more than 0 seconds")
    return seconds
