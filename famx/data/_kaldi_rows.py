"""Folders in the form of Kaldi: wav.scp and text, with or without utt2spk and segments."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from famx.data._paths import RecordingFolder
from famx.data._rows import Row, numbered_lines, parse_seconds
from famx.notation import Seconds, UserError

TO_THE_END = "-1"  # as the end of a segment

log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """The rest of a line after its name, and the place of the line for messages."""

    value: str
    location: str


class Part(NamedTuple):
    """A file, and the part of it that an utterance is; see `Row`."""

    file: str
    seconds: Seconds | None = None
    start: Seconds | None = None


def read_kaldi(manifest: Path, folder: RecordingFolder) -> Iterator[Row]:
    """Yields the utterances of `text`, in its order; their speakers are those of `utt2spk`.

    Args:
        manifest: folder of the files.
        folder: folder to which the paths of wav.scp are relative.

    Raises:
        UserError: a file is missing or damaged, an utterance has no recording, a line of wav.scp is
            a command (which is never run) or names no file.
    """
    texts = _read_table(manifest / "text")
    scp = _read_table(manifest / "wav.scp")
    parts = {name: Part(_locate(entry, folder)) for name, entry in scp.items()}
    source = "wav.scp"
    if (manifest / "segments").is_file():
        segments = _read_table(manifest / "segments")
        parts = {name: _parse_segment(entry, parts) for name, entry in segments.items()}
        source = "segments"
    speakers = {}
    if (manifest / "utt2spk").is_file():
        speakers = _read_table(manifest / "utt2spk")
    for name, (text, location) in texts.items():
        if name not in parts:
            raise UserError(f"{location}: {name} is not in {manifest / source}")
        part = parts[name]
        speaker = speakers[name].value if name in speakers else ""
        yield Row(name, text, speaker, part.file, part.seconds, part.start)
    n_without_text = len(parts.keys() - texts.keys())
    if n_without_text:
        log.warning(
            "%d of the %d utterances of %s have no line in %s and are left out",
            n_without_text,
            len(parts),
            manifest / source,
            manifest / "text",
        )


def _read_table(file: Path) -> dict[str, Entry]:
    """Reads a file of lines NAME VALUE.

    Raises:
        UserError: it does not exist, or two lines have one name.
    """
    if not file.is_file():
        raise UserError(f"there is no file {file}, which a folder in the form of Kaldi has")
    table: dict[str, Entry] = {}
    for location, line in numbered_lines(file):
        # by the separators of Kaldi alone: a text may hold other spaces
        name, *values = re.split(r"[ \t]+", line.strip(" \t\r"), maxsplit=1)
        if name in table:
            raise UserError(f"{location}: {name} has a line already, {table[name].location}")
        table[name] = Entry(values[0] if values else "", location)
    return table


def _locate(entry: Entry, folder: RecordingFolder) -> str:
    """Returns the absolute path of the file that a line of wav.scp names.

    Raises:
        UserError: it names none.
    """
    path, location = entry
    if path.endswith("|") or path.startswith("|"):
        raise UserError(
            f"{location} is a command, {path!r}, which famx does not run; write its output to a "
            "file and name that"
        )
    if not path:
        raise UserError(f"{location} names no file")
    return folder.locate(path, location)


def _parse_segment(entry: Entry, recordings: dict[str, Part]) -> Part:
    """Parses RECORDING START END.

    Raises:
        UserError: the line has another form, or its recording is not known.
    """
    value, location = entry
    fields = value.split()
    if len(fields) != 3:
        raise UserError(f"{location}: expected UTTERANCE RECORDING START END, got {value!r}")
    recording, start_written, end_written = fields
    if recording not in recordings:
        raise UserError(f"{location}: {recording} is not in wav.scp")
    start = parse_seconds(start_written, "the start", location)
    if end_written == TO_THE_END:
        return Part(recordings[recording].file, None, start)
    end = parse_seconds(end_written, "the end", location)
    if end <= start:
        raise UserError(f"{location}: the end, {end:g} s, is not after the start, {start:g} s")
    return Part(recordings[recording].file, end - start, start)
