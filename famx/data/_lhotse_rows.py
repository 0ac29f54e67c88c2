"""Manifests of cuts of lhotse (.jsonl.gz): recordings with their supervisions, read by lhotse."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from famx.data._paths import RecordingFolder
from famx.data._rows import Row
from famx.notation import UserError

if TYPE_CHECKING:
    from lhotse import MonoCut, Recording

SUFFIX = ".jsonl.gz"
TOLERANCE = 1e-3  # seconds by which the end of a supervision may differ from that of its recording
# what lhotse raises for lines that hold no cut
LINE_ERRORS = (EOFError, OSError, zlib.error, ValueError, KeyError, TypeError, AttributeError)


def read_cuts(manifest: Path, folder: RecordingFolder) -> Iterator[Row]:
    """Yields a row for each supervision of each cut: the part of the recording that it describes.

    A recording has one channel, is one file, and is not changed by lhotse when it is loaded.

    Raises:
        UserError: lhotse is not installed or cannot read a line, a line is no cut of one channel,
            a cut has no supervision, a supervision has no text, or a file does not exist.
    """
    try:
        # imported late: an extra, which takes seconds
        from lhotse import MonoCut
        from lhotse.lazy import LazyManifestIterator
    except ImportError as error:
        raise UserError(
            f"{manifest} is a manifest of lhotse, which is not installed: "
            f"pip install 'famx[lhotse]' ({error})"
        ) from error
    # an absolute path, since lhotse would run commands of other names
    items = iter(LazyManifestIterator(manifest.resolve()))
    number = 0
    while True:
        number += 1
        try:
            cut = next(items)
        except StopIteration:
            return
        except LINE_ERRORS as error:
            raise UserError(
                f"{manifest}, line {number}, is no cut that lhotse can read: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(cut, MonoCut):
            raise UserError(
                f"{manifest}, line {number}, is a {type(cut).__name__}, expected a MonoCut, which "
                "is a part of one recording of one channel"
            )
        yield from _rows_of_cut(cut, f"{manifest}, cut {cut.id}", folder)


def _rows_of_cut(cut: "MonoCut", location: str, folder: RecordingFolder) -> Iterator[Row]:
    path = _path_of(cut.recording, location)
    file = folder.locate(path, location)
    if not cut.supervisions:
        raise UserError(f"{location} has no supervision, from which its text would come")
    for supervision in cut.supervisions:
        if supervision.text is None:
            raise UserError(f"{location}: the supervision {supervision.id} has no text")
        # the start of a supervision is that in its cut
        start = cut.start + supervision.start
        seconds = supervision.duration
        total = cut.recording.duration
        if start < -TOLERANCE or seconds <= 0 or start + seconds > total + TOLERANCE:
            raise UserError(
                f"{location}: the supervision {supervision.id} is from {start:g} to "
                f"{start + seconds:g} s, and its recording from 0 to {total:g} s"
            )
        is_complete = start <= TOLERANCE and start + seconds >= total - TOLERANCE
        yield Row(
            supervision.id,
            supervision.text,
            supervision.speaker or "",
            file,
            total if is_complete else seconds,
            None if is_complete else max(start, 0.0),
        )


def _path_of(recording: "Recording | None", location: str) -> str:
    """Returns the path of a recording as it is written.

    Raises:
        UserError: it has several channels or sources, or lhotse would change it.
    """
    if recording is None:
        raise UserError(f"{location} has no recording")
    if recording.num_channels != 1 or len(recording.sources) != 1:
        raise UserError(
            f"{location} is one of {recording.num_channels} channels, and famx reads the mean of "
            "all: store its channel as a file of its own"
        )
    [source] = recording.sources
    if source.type != "file":
        raise UserError(f"{location} has a source of type {source.type}, expected file")
    if recording.transforms:
        raise UserError(
            f"{location} is changed when it is loaded ({len(recording.transforms)} transforms), "
            "which famx does not do: store the changed recording, or set loader.speed"
        )
    return str(source.source)
