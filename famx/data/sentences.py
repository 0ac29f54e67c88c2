"""Sentences with labels: a folder with train.tsv and test.tsv (label, sentence)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from famx.data._paths import typed_path
from famx.data._splits import files_of, lines_of_split
from famx.data._tokenizers import byte_tokenizer
from famx.data.base import Dataset, check_split
from famx.nn.batch import Example
from famx.notation import Modality, Subwords, UserError
from famx.registry import register

N_BYTES = 256


@register
class Sentences(Dataset):
    """Sentences as bytes of UTF-8, with one label each; a line of a file is LABEL<TAB>SENTENCE.

    Args:
        split: "train", "dev" or "test".
        root: folder of the files.
        train, dev, test: names of the files. With `dev=null`, every tenth line of `train` belongs
            to dev, with `test=null` the line before it to test, and the others to train.
    """

    modality = Modality.TEXT
    path_options = ("root",)
    input_vocab_size = N_BYTES

    def __init__(
        self,
        split: str,
        *,
        root: str = "",
        train: str = "train.tsv",
        dev: str | None = None,
        test: str | None = "test.tsv",
    ) -> None:
        check_split(split, self.splits)
        if not root:
            raise UserError("data=sentences needs the folder of its files, data.root=DIR")
        names = {"train": train, "dev": dev, "test": test}
        self._set_rows(split, lines_of_split(split, files_of(typed_path(root), names), _read))

    def _set_rows(self, split: str, rows: Sequence[tuple[str, str]]) -> None:
        """Sets the items of a split, given by their labels and sentences."""
        self.texts = [label for label, _ in rows]
        self._sentences = [self.encode(sentence) for _, sentence in rows]
        self.ids = [f"{split}-{i:05d}" for i in range(len(rows))]
        self.lengths = [float(len(sentence)) for sentence in self._sentences]

    @staticmethod
    def encode(sentence: str) -> Sequence[int]:
        """Returns the token ids of a sentence, below `input_vocab_size`: its bytes."""
        return sentence.encode()

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        lines = [f"{'ab'[i % 2]}\tsentence {i} of {'ab'[i % 2] * (1 + i % 5)}" for i in range(24)]
        (folder / "train.tsv").write_text("\n".join(lines))
        (folder / "test.tsv").write_text("\n".join(lines[:6]))
        return {"root": str(folder)}

    def __getitem__(self, index: int) -> Example:
        signal = torch.tensor(list(self._sentences[index]))
        return Example(self.ids[index], signal, self.texts[index])

    def build_tokenizer(
        self,
        vocab_size: int = 0,
        special_tokens: Sequence[str] = (),
        subwords: Subwords = "bpe",
    ) -> Tokenizer:
        """Builds the tokenizer of bytes, which the inputs consist of.

        Raises:
            UserError: subwords or special tokens are requested, which the items do not contain.
        """
        if vocab_size or special_tokens:
            raise UserError("data=sentences is for task=classify: its items are bytes and a label")
        return byte_tokenizer()


def _read(file: Path) -> list[tuple[str, str]]:
    """Returns label and sentence of each line.

    Raises:
        UserError: the file cannot be read, or a line has no label or no sentence.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(
            f"{file} cannot be read: {error.strerror}; data.root=DIR names the folder of it"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8: {error.reason} at byte {error.start}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        label, tab, sentence = line.partition("\t")
        if not tab or not label.strip() or not sentence.strip():
            raise UserError(f"{file}, line {number}: expected LABEL<TAB>SENTENCE, got {line!r}")
        rows.append((label.strip(), sentence.strip()))
    return rows
