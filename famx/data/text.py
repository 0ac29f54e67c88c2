"""Characters or bytes of one file, for language models; by default the help texts that Python itself brings along."""

import copy
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from famx.data._tokenizers import byte_tokenizer, train_tokenizer
from famx.data.base import choose_split
from famx.nn.batch import Example
from famx.notation import UserError
from famx.registry import register
from famx.seeding import numpy_rng

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@register
class Text:
    """Blocks of a text: the first 80 % to train, the next 10 % to choose by, the last 10 % to test.

    Training blocks begin anywhere, drawn anew each epoch, as many as the text is blocks long; the others follow one
    another. An item has block + 1 ids, the inputs and the targets one further on.

    Args:
        path: a text file in UTF-8; empty for the text of `pydoc_data.topics`.
        unit: what a token is.
        block: tokens that a model sees at once.
    """

    splits = ("train", "dev", "test")
    unit = "tokens"
    normaliser = "none"

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        path: str = "",
        unit: Literal["chars", "bytes"] = "chars",
        block: int = 128,
    ) -> None:
        choose_split(split, self.splits)
        if block < 1:
            raise UserError(f"data.block={block} has to be 1 or more")
        tokens, self._characters = _tokens(path, unit)
        borders = [0, *(len(tokens) * share // 10 for share in (8, 9, 10))]
        start, stop = dict(zip(self.splits, pairwise(borders), strict=True))[split]
        self._tokens = tokens[start:stop]
        self._split, self._seed, self._block, self._anew = split, seed, block, split == "train"
        if len(self._tokens) <= block:
            raise UserError(
                f"data.block={block} is more than the {len(self._tokens)} tokens of {split} can fill"
            )
        self._deal(0)

    def at(self, epoch: int) -> "Text":
        """Training blocks begin elsewhere in each epoch."""
        if not self._anew:
            return self
        view = copy.copy(self)
        view._deal(epoch)
        return view

    def _deal(self, epoch: int) -> None:
        places = len(self._tokens) - self._block
        self._starts = np.arange(0, places, self._block)
        if self._anew:
            self._starts = numpy_rng(self._seed, "blocks", epoch).integers(
                0, places, len(self._starts)
            )
        self.ids = [f"{self._split}-{start}" for start in self._starts]
        self.texts = [""] * len(self._starts)
        self.lengths = [float(self._block)] * len(self._starts)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Example:
        start = self._starts[index]
        block = self._tokens[start : start + self._block + 1].astype(np.int64)
        return Example(self.ids[index], torch.from_numpy(block), "")

    def build_tokenizer(self) -> "Tokenizer":
        """Characters of the whole file, or the 256 bytes."""
        return (
            byte_tokenizer()
            if self._characters is None
            else train_tokenizer([self._characters], special=())
        )


def _tokens(path: str, unit: str) -> tuple[np.ndarray, str | None]:
    """The ids of the whole text and the characters in their order, None for bytes."""
    raw = _read(path)
    if unit == "bytes":
        return np.frombuffer(raw, np.uint8), None
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.start}), so it has to be read with data.unit=bytes"
        ) from error
    points, ids = np.unique(np.frombuffer(text.encode("utf-32-le"), np.uint32), return_inverse=True)
    return ids.astype(np.int32), "".join(map(chr, points))


def _read(path: str) -> bytes:
    if not path:
        from pydoc_data.topics import topics

        return "\n".join(topics[name] for name in sorted(topics)).encode()
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"data.path={path} cannot be read: {error.strerror}") from error
