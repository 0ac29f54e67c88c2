"""Characters, bytes or subwords of a file, for language models; by default Python's help texts."""

import copy
import hashlib
from collections.abc import Sequence
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from famx.data._fingerprint import digest
from famx.data._grammar import sentences
from famx.data._paths import typed_path
from famx.data._text_units import Unit, encode_units, unit_tokenizer
from famx.data.base import Dataset, check_split
from famx.nn.batch import Example
from famx.notation import Modality, Subwords, UserError
from famx.registry import register
from famx.seeding import numpy_rng


@register
class Text(Dataset):
    """Blocks of a text: train is its first 80 %, dev the next 10 %, test the last 10 %.

    With files of their own for dev and test, train is all of `path`.

    As many training blocks as fit into the text begin at random positions, sampled anew in every
    epoch; blocks of the other splits follow one another. An item has block + 1 token ids: the
    inputs are all but the last, the targets all but the first.

    Args:
        split: "train", "dev" or "test".
        seed: seed of the positions of training blocks.
        path: a text file in UTF-8; empty for the text of `pydoc_data.topics`.
        dev, test: text files of the other splits; both or neither.
        unit: kind of token: characters, bytes, or subwords that are learned from train, by
            byte-pair encoding or as a unigram model. Subwords encode any text without loss; their
            spaces belong to the word that follows.
        vocab_size: number of subwords, the 256 bytes included.
        block: tokens that a model predicts at once, at least 1.
    """

    modality = Modality.TEXT
    path_options = ("path", "dev", "test")
    tokenizer_options = ("unit", "vocab_size")

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        path: str = "",
        dev: str = "",
        test: str = "",
        unit: Unit = "chars",
        vocab_size: int = 1024,
        block: int = 128,
    ) -> None:
        check_split(split, self.splits)
        if block < 1:
            raise UserError(f"data.block={block} must be at least 1")
        self._split = split
        self._seed = seed
        if bool(dev) != bool(test):
            raise UserError(
                f"data.dev={dev} and data.test={test} must both name files, or neither of them"
            )
        self._path = path
        self._other_paths = (dev, test) if dev else ()
        self._unit = unit
        self._block = block
        self._tokenizer = self._encode(vocab_size)

    def _encode(self, vocab_size: int = 0, tokenizer: Tokenizer | None = None) -> Tokenizer:
        """Sets the tokens of the split, and its blocks of epoch 0.

        Args:
            vocab_size: number of subwords to learn.
            tokenizer: tokenizer of another text; None for one of this text.

        Returns:
            The tokenizer.
        """
        text, sizes = self._read()
        # borders of the splits: those of the files, or in tenths of the full text
        borders = [0, *accumulate(sizes)]
        if not self._other_paths:
            borders = [len(text) * tenths // 10 for tenths in (0, 8, 9, 10)]
        if tokenizer is None:
            tokenizer = unit_tokenizer(text, borders[1], self._unit, vocab_size)
        start, stop = list(pairwise(borders))[self.splits.index(self._split)]
        part = text[start:stop]
        paths = dict(zip(self.splits, (self._path, *self._other_paths), strict=False))
        name = f"{paths.get(self._split, self._path) or 'the text'} ({self._split})"
        self._token_ids = encode_units(part, tokenizer, self._unit, name)
        if len(self._token_ids) <= self._block:
            raise UserError(
                f"data.block={self._block} is more than the {len(self._token_ids)} tokens of "
                f"{self._split} can fill"
            )
        self._choose_blocks(0)
        return tokenizer

    def _read(self) -> tuple[str | bytes, list[int]]:
        """Returns the texts of all files as one, and their sizes; bytes where a token is a byte."""
        paths = {"data.path": self._path}
        if self._other_paths:
            paths["data.dev"], paths["data.test"] = self._other_paths
        contents = [_read(option, path) for option, path in paths.items()]
        if self._unit == "bytes":
            return b"".join(contents), [len(content) for content in contents]
        texts = [_decode(*pair) for pair in zip(contents, paths.values(), strict=True)]
        return "".join(texts), [len(text) for text in texts]

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        if tokenizer.to_str() != self._tokenizer.to_str():
            self._tokenizer = self._encode(tokenizer=tokenizer)

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        file = folder / "text.txt"
        file.write_text("\n".join(islice(sentences(0), 60)), encoding="utf-8")
        return {"path": str(file), "block": 16}

    def at(self, epoch: int) -> "Text":
        if self._split != "train":
            return self
        # a view shares the tokens
        view = copy.copy(self)
        view._choose_blocks(epoch)
        return view

    def _choose_blocks(self, epoch: int) -> None:
        """Sets the start positions of the blocks of an epoch."""
        n_positions = len(self._token_ids) - self._block
        starts = np.arange(0, n_positions, self._block)
        if self._split == "train":
            rng = numpy_rng(self._seed, "blocks", epoch)
            starts = rng.integers(0, n_positions, len(starts))
        self._starts = starts
        self.ids = [f"{self._split}-{start}" for start in starts]
        self.texts = [""] * len(starts)
        self.lengths = [float(self._block)] * len(starts)

    def fingerprint(self) -> dict[str, str]:
        content = hashlib.sha256(self._token_ids.tobytes()).hexdigest()
        characters = digest([_vocabulary(self._tokenizer, self._unit)])
        return super().fingerprint() | {"texts": content, "characters": characters}

    def __getitem__(self, index: int) -> Example:
        start = self._starts[index]
        block = self._token_ids[start : start + self._block + 1].astype(np.int64)
        return Example(self.ids[index], torch.from_numpy(block), "")

    def build_tokenizer(
        self,
        vocab_size: int = 0,
        special_tokens: Sequence[str] = (),
        subwords: Subwords = "bpe",
    ) -> Tokenizer:
        """Returns the tokenizer of the items.

        Raises:
            UserError: subwords or special tokens are requested, which the items do not contain.
        """
        if vocab_size or special_tokens:
            raise UserError(
                f"data=text has one token for each of its {self._unit}, so it has no subwords "
                f"(vocab_size={vocab_size}) and no special tokens ({', '.join(special_tokens)})"
            )
        return self._tokenizer


def _vocabulary(tokenizer: Tokenizer, unit: Unit) -> str | None:
    """Returns what a text decides of its tokenizer; None where a token is a byte."""
    if unit == "bytes":
        return None
    return "".join(sorted(tokenizer.get_vocab())) if unit == "chars" else tokenizer.to_str()


def _decode(content: bytes, path: str) -> str:
    """Returns the text of a file.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.start}); read it with data.unit=bytes"
        ) from error


def _read(option: str, path: str) -> bytes:
    """Returns the content of a file, or Python's help texts where the path is empty."""
    if not path:
        from pydoc_data.topics import topics

        return "\n".join(topics[name] for name in sorted(topics)).encode()
    try:
        return typed_path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{option}={path} cannot be read: {error.strerror}") from error
