"""Tables of audio files, given by their paths or their bytes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from famx.notation import UserError


@runtime_checkable
class AudioTable(Protocol):
    """Rows with the column `audio`, as in a `datasets.Dataset`."""

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...

    def __iter__(self) -> Iterator[Any]: ...

    def select(self, indices: Sequence[int], /) -> "AudioTable": ...


class AudioFiles:
    """A table of audio files, given by their paths.

    Arrow's tables, which `datasets` uses, cannot hold a path that is not UTF-8.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = list(paths)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {"audio": {"path": self.paths[index], "bytes": None}}

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return (self[index] for index in range(len(self.paths)))

    def select(self, indices: Sequence[int]) -> "AudioFiles":
        return AudioFiles([self.paths[index] for index in indices])


def audio_source(audio: Mapping[str, Any] | None, name: str) -> str | bytes:
    """Returns the bytes of a file in a table, or else its path.

    Raises:
        UserError: the row has neither.
    """
    if audio is None or not (audio["bytes"] or audio["path"]):
        raise UserError(f"{name} has no recording")
    return audio["bytes"] or audio["path"]
