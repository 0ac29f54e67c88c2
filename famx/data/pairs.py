"""Texts with their translations: a folder with train.tsv, dev.tsv and test.tsv (source, target)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from famx.data._normalisers import Normaliser
from famx.data._pairs import Pair, PairDataset
from famx.data._paths import existing_path, typed_path
from famx.data._rows import numbered_lines
from famx.data._splits import files_of, lines_of_split
from famx.data.base import check_split
from famx.notation import UserError
from famx.registry import register


@register
class Pairs(PairDataset):
    """Pairs of texts for task=translate; a line of a file is SOURCE<TAB>TARGET.

    Args:
        split: "train", "dev" or "test".
        root: folder of the files.
        train, dev, test: names of the files. With `dev=null`, every tenth line of `train` belongs
            to dev, with `test=null` the line before it to test, and the others to train.
        source, target: numbers of the columns, from 1. All lines of a file have equally many; other
            columns are not read.
        normaliser: normalisation of both sides: as written ("none"), in NFC without invisible
            characters ("unicode"), lower case without punctuation ("basic"), or Whisper's rules for
            English ("english", of the extra `english`).
        skip_bad: leaves out pairs with an empty side and counts them; otherwise the first one is
            refused.
    """

    path_options = ("root",)

    def __init__(  # noqa: PLR0913
        self,
        split: str,
        *,
        root: str = "",
        train: str = "train.tsv",
        dev: str | None = "dev.tsv",
        test: str | None = "test.tsv",
        source: int = 1,
        target: int = 2,
        normaliser: Normaliser = "none",
        skip_bad: bool = False,
    ) -> None:
        check_split(split, self.splits)
        if not root:
            raise UserError("data=pairs needs the folder of its files, data.root=DIR")
        if source < 1 or target < 1 or source == target:
            raise UserError(
                f"data.source={source} and data.target={target} must be the numbers of two "
                "columns, from 1"
            )
        folder = existing_path(typed_path(root))
        files = files_of(folder, {"train": train, "dev": dev, "test": test})
        if (missing := files[split]) and not missing.exists():
            remedy = "" if split == "train" else f"; data.{split}=null takes a tenth of {train}"
            raise UserError(f"there is no file {missing}{remedy}")
        pairs = lines_of_split(split, files, lambda file: read_pairs(file, source, target))
        super().__init__(split, pairs, normaliser, skip_bad)

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        words = ("zero", "one", "two", "three", "four")
        for split, start, size in (("train", 0, 24), ("dev", 24, 6), ("test", 30, 6)):
            lines = []
            for i in range(start, start + size):
                digits = [i % 5, i // 5 % 5, i * i % 5][: 1 + i % 3]
                source = " ".join(map(str, digits))
                lines.append(f"{source} .\t{' '.join(words[digit] for digit in digits)} .")
            (folder / f"{split}.tsv").write_text("\n".join(lines))
        return {"root": str(folder)}


def read_pairs(file: Path, source: int, target: int) -> list[Pair]:
    """Returns the pairs of a file.

    Args:
        source, target: numbers of the columns, from 1.

    Raises:
        UserError: the file cannot be read, or a line has not the columns of the first one.
    """
    pairs = []
    n_columns = 0
    for location, line in numbered_lines(file):
        columns: Sequence[str] = line.split("\t")
        if len(columns) < max(source, target):
            raise UserError(
                f"{location}: expected SOURCE<TAB>TARGET in the columns {source} and {target}, "
                f"got {len(columns)} columns: {line!r}"
            )
        n_columns = n_columns or len(columns)
        if len(columns) != n_columns:
            raise UserError(
                f"{location}: {len(columns)} columns, and the first line has {n_columns}: a tab "
                "separates columns, and no text has one"
            )
        pairs.append(Pair(columns[source - 1], columns[target - 1], location))
    return pairs
