"""Manifests of one JSON object a line, with the keys of NeMo: audio_filepath, text, duration."""

import json
from collections.abc import Iterator
from pathlib import Path

from famx.data._paths import RecordingFolder
from famx.data._rows import Row, numbered_lines, parse_duration, parse_seconds
from famx.data._tables import as_text
from famx.notation import UserError

SUFFIXES = (".json", ".jsonl")


def read_json_lines(manifest: Path, folder: RecordingFolder) -> Iterator[Row]:
    """Yields the rows of a manifest.

    `audio_filepath` and `text` are required. `duration`, in seconds, spares reading the header;
    with `offset`, the row is the part of the file that begins there. `speaker` is optional, all
    other keys are ignored.

    Raises:
        UserError: a line is not a JSON object, lacks a key or has a bad value, or names no file.
    """
    for location, line in numbered_lines(manifest):
        values = _parse(line, location)
        path = _require(values, "audio_filepath", location)
        text = _require(values, "text", location)
        speaker = values.get("speaker") or ""
        file = folder.locate(path, location)
        duration = values.get("duration")
        seconds = None
        if duration is not None:
            seconds = parse_duration(duration, "duration", location)
        offset = values.get("offset")
        if offset is None:
            yield Row(path, text, speaker, file, seconds)
            continue
        start = parse_seconds(offset, "offset", location)
        if seconds is None:
            raise UserError(f"{location}: offset is {offset} and there is no duration beside it")
        yield Row(f"{path}[{start:g}:{start + seconds:g}]", text, speaker, file, seconds, start)


def _parse(line: str, location: str) -> dict[str, str | None]:
    """Parses a line to its values as texts, numbers as they are written.

    Raises:
        UserError: it is not a JSON object, or holds half of a surrogate pair.
    """
    try:
        values = json.loads(line, parse_int=str, parse_float=str)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{location} is not JSON ({error}); a line is one object") from error
    if not isinstance(values, dict):
        raise UserError(f"{location} is not a JSON object; a line is one object, without commas")
    texts = {name: as_text(value) for name, value in values.items()}
    for name, text in texts.items():
        try:
            (text or "").encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{location}: {name} is no text in UTF-8: {text!r}") from error
    return texts


def _require(values: dict[str, str | None], name: str, location: str) -> str:
    """Returns a value that must be a text.

    Raises:
        UserError: there is none.
    """
    value = values.get(name)
    if value is None:
        raise UserError(f"{location} has no text as its {name}; its keys are {', '.join(values)}")
    return value
