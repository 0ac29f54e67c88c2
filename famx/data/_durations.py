"""Durations of recordings, which are read once and then stored in a table of the cache."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from famx.data._audio import read_duration
from famx.data._audio_table import AudioFiles, AudioTable, audio_source, extent_of
from famx.data._decoding import seconds_after
from famx.data._fingerprint import Stamp, stamp_of
from famx.data._rendering import cache_folder
from famx.notation import Seconds, UserError

if TYPE_CHECKING:
    import datasets

# part of the names of tables: a change of how durations are read needs another one
VERSION = 2
# fewer files are read faster than a table
MIN_FILES = 1000
# rows of a data set with embedded recordings that are in memory at once
BATCH_ROWS = 100
MAX_THREADS = 16

Duration = Seconds | UserError
"""The duration of a recording, or why it cannot be read."""


def read_durations(audio: AudioTable, names: Sequence[str]) -> list[Duration]:
    """Reads the durations of all recordings from their headers, those that no list states.

    Args:
        audio: table with the column `audio`: the `path` or the `bytes` of each file.
        names: names of the recordings in errors.
    """
    durations: list[Duration] = []
    # files, by the row in which they occur; embedded recordings are read at once
    files: dict[int, str] = {}
    for index, row in enumerate(_audio_column(audio)):
        try:
            source = audio_source(row, names[index])
        except UserError as error:
            durations.append(error)
            continue
        stated = extent_of(audio, index).seconds
        if stated is not None:
            durations.append(stated)
        elif isinstance(source, bytes):
            durations.append(_read(source, names[index]))
        else:
            files[index] = source
            durations.append(0.0)
    paths = list(files.values())
    read = _read_files(paths, [names[index] for index in files])
    for index, duration in zip(files, read, strict=True):
        durations[index] = _from_start(duration, extent_of(audio, index).start, names[index])
    return durations


def _from_start(duration: Duration, start: Seconds | None, name: str) -> Duration:
    """Returns the duration of what is left of a file from `start` on."""
    if start is None or isinstance(duration, UserError):
        return duration
    try:
        return seconds_after(start, duration, name)
    except UserError as error:
        return error


def _audio_column(audio: AudioTable) -> Iterator[Mapping[str, Any] | None]:
    """Yields the column `audio` of a table; of a data set some rows at a time."""
    if isinstance(audio, AudioFiles):
        yield from (row["audio"] for row in audio)
        return
    dataset: datasets.Dataset = audio  # type: ignore[assignment]
    for batch in dataset.with_format("arrow").iter(BATCH_ROWS):
        yield from batch["audio"].to_pylist()


def _read(file: str | bytes, name: str) -> Duration:
    """Reads a duration, or returns the error as a value."""
    try:
        return read_duration(file, name)
    except UserError as error:
        return error


def _read_files(paths: Sequence[str], names: Sequence[str]) -> list[Duration]:
    """Reads the durations of files, those that have changed since the last time."""
    if len(paths) < MIN_FILES:
        return [_read(path, name) for path, name in zip(paths, names, strict=True)]
    table = _table_file(paths)
    stored = _load(table) if table else {}
    stamps = [stamp_of(path) for path in paths]
    durations: list[Duration] = []
    missing: list[int] = []
    for index, (path, stamp) in enumerate(zip(paths, stamps, strict=True)):
        stored_stamp, seconds = stored.get(path, (None, 0.0))
        durations.append(seconds)
        if stamp is None or stamp != stored_stamp:
            missing.append(index)
    # by threads: FFmpeg and the disk work in parallel
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
        missing_paths = [paths[index] for index in missing]
        missing_names = [names[index] for index in missing]
        read = threads.map(_read, missing_paths, missing_names)
        for index, duration in zip(missing, _with_progress(read, len(missing)), strict=True):
            durations[index] = duration
            stamp = stamps[index]
            if stamp is not None and not isinstance(duration, UserError):
                stored[paths[index]] = (stamp, duration)
    if missing and table:
        _save(table, stored)
    return durations


def _with_progress(durations: Iterator[Duration], total: int) -> Iterator[Duration]:
    """Yields the durations, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True, markup=False)
    yield from track(
        durations,
        "reading the lengths of new recordings",
        total=total,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _table_file(paths: Sequence[str]) -> Path | None:
    """Returns the file of the table of the folder in which all files are, None without a cache."""
    folders = {os.path.dirname(path) for path in paths}
    folder = os.path.commonpath([os.path.abspath(folder) for folder in folders])
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    try:
        cache = cache_folder()
    except UserError:  # the user has no home
        return None
    return cache / f"durations-{VERSION}-{digest}.parquet"


def _load(table: Path) -> dict[str, tuple[Stamp, Seconds]]:
    """Loads a table: the stamp and the duration of each path; empty if there is none."""
    import pyarrow
    from pyarrow import parquet

    try:
        columns = parquet.read_table(table).to_pydict()
        stamps = map(Stamp, *(columns[field] for field in Stamp._fields))
        values = zip(stamps, columns["seconds"], strict=True)
        return dict(zip(columns["path"], values, strict=True))
    except (OSError, KeyError, ValueError, pyarrow.ArrowException):  # missing or damaged
        return {}


def _save(table: Path, stored: dict[str, tuple[Stamp, Seconds]]) -> None:
    """Saves a table completely or, if the cache cannot be written, not at all."""
    import pyarrow
    from pyarrow import parquet

    columns = {
        "path": list(stored),
        "seconds": [seconds for _, seconds in stored.values()],
    }
    for position, field in enumerate(Stamp._fields):
        columns[field] = [stamp[position] for stamp, _ in stored.values()]
    # several processes may write; each replaces the table by one that is complete
    temp_file = table.with_name(f".{table.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        table.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table(columns), temp_file)
        temp_file.replace(table)
