"""Tables of audio files, or parts of them, given by their paths or their bytes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from famx.notation import Seconds, UserError


@runtime_checkable
class AudioTable(Protocol):
    """Rows with the column `audio`, as in a `datasets.Dataset`."""

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...

    def __iter__(self) -> Iterator[Any]: ...

    def select(self, indices: Sequence[int], /) -> "AudioTable": ...


class Extent(NamedTuple):
    """The extent of a recording, as far as a list states it.

    Attributes:
        seconds: its duration, None if the list does not state it.
        start: where it begins in its file, in seconds; None if it is the complete file.
    """

    seconds: Seconds | None = None
    start: Seconds | None = None


COMPLETE = Extent()


class AudioFiles:
    """A table of audio files, given by their paths.

    Arrow's tables, which `datasets` uses, cannot hold a path that is not UTF-8.

    Args:
        paths: paths of the files.
        extents: one per file; by default all files are complete and of unknown duration.
    """

    def __init__(self, paths: Sequence[str], extents: Sequence[Extent] | None = None) -> None:
        self.paths = list(paths)
        self.extents = [COMPLETE] * len(self.paths) if extents is None else list(extents)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {"audio": {"path": self.paths[index], "bytes": None}}

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return (self[index] for index in range(len(self.paths)))

    def select(self, indices: Sequence[int]) -> "AudioFiles":
        paths = [self.paths[index] for index in indices]
        return AudioFiles(paths, [self.extents[index] for index in indices])


def extent_of(table: AudioTable, index: int) -> Extent:
    """Returns the extent of a recording; those of tables of other kinds are complete files."""
    return table.extents[index] if isinstance(table, AudioFiles) else COMPLETE


def audio_source(audio: Mapping[str, Any] | None, name: str) -> str | bytes:
    """Returns the bytes of a file in a table, or else its path.

    Raises:
        UserError: the row has neither.
    """
    if audio is None or not (audio["bytes"] or audio["path"]):
        raise UserError(f"{name} has no recording")
    return audio["bytes"] or audio["path"]
