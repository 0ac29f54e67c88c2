"""The lines of a split, of a file of its own or of a tenth of the training file."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from famx.notation import UserError

Line = TypeVar("Line")

# last digit of the number of a line, from 0 -> the split that it may belong to
SHARED = {8: "test", 9: "dev"}


def files_of(folder: Path, names: Mapping[str, str | None]) -> dict[str, Path | None]:
    """Returns the file of each split; None for a split without a name."""
    return {split: folder / name if name else None for split, name in names.items()}


def lines_of_split(
    split: str, files: Mapping[str, Path | None], read: Callable[[Path], list[Line]]
) -> list[Line]:
    """Reads the lines of a split.

    Args:
        split: "train", "dev" or "test".
        files: file of each split. Of dev and test it may be None: then every tenth line of train,
            or the line before it, is theirs.
        read: reads the lines of a file.

    Raises:
        UserError: the file has too few lines.
    """
    train = files["train"]
    file = files[split] or train
    assert file is not None
    lines = read(file)
    if file == train:
        without_file = {digit: other for digit, other in SHARED.items() if files[other] is None}
        lines = [x for i, x in enumerate(lines) if without_file.get(i % 10, "train") == split]
    if not lines:
        raise UserError(f"{file} has too few lines for the split {split}")
    return lines
