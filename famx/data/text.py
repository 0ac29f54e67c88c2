"""Characters or bytes of one file, for language models; by default Python's own help texts."""

import copy
import hashlib
from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer

from famx.data._fingerprint import digest
from famx.data._grammar import sentences
from famx.data._paths import typed_path
from famx.data._tokenizers import byte_tokenizer, train_tokenizer
from famx.data.base import Dataset, check_split
from famx.nn.batch import Example
from famx.notation import Modality, UserError
from famx.registry import register
from famx.seeding import numpy_rng


@register
class Text(Dataset):
    """Blocks of a text: train is its first 80 %, dev the next 10 %, test the last 10 %.

    As many training blocks as fit into the text begin at random positions, sampled anew in every
    epoch; blocks of the other splits follow one another. An item has block + 1 token ids: the
    inputs are all but the last, the targets all but the first.

    Args:
        split: "train", "dev" or "test".
        seed: seed of the positions of training blocks.
        path: a text file in UTF-8; empty for the text of `pydoc_data.topics`.
        unit: kind of token.
        block: tokens that a model predicts at once, at least 1.
    """

    modality = Modality.TEXT
    path_options = ("path",)

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        path: str = "",
        unit: Literal["chars", "bytes"] = "chars",
        block: int = 128,
    ) -> None:
        check_split(split, self.splits)
        if block < 1:
            raise UserError(f"data.block={block} must be at least 1")
        # tokens of the full text
        token_ids, self._characters = _encode_file(path, unit)
        # tokens of the split; its borders are in tenths of the text
        borders = [len(token_ids) * tenths // 10 for tenths in (0, 8, 9, 10)]
        start, stop = list(pairwise(borders))[self.splits.index(split)]
        self._token_ids = token_ids[start:stop]
        self._split = split
        self._seed = seed
        self._unit = unit
        self._block = block
        if len(self._token_ids) <= block:
            raise UserError(
                f"data.block={block} is more than the {len(self._token_ids)} tokens of {split} "
                "can fill"
            )
        self._choose_blocks(0)

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
        characters = digest([self._characters])
        return super().fingerprint() | {"texts": content, "characters": characters}

    def __getitem__(self, index: int) -> Example:
        start = self._starts[index]
        block = self._token_ids[start : start + self._block + 1].astype(np.int64)
        return Example(self.ids[index], torch.from_numpy(block), "")

    def build_tokenizer(self, vocab_size: int = 0, special_tokens: Sequence[str] = ()) -> Tokenizer:
        """Builds the tokenizer of the characters of the full file, or of the 256 bytes.

        Raises:
            UserError: subwords or special tokens are requested, which the items do not contain.
        """
        if vocab_size or special_tokens:
            raise UserError(
                f"data=text has one token for each of its {self._unit}, so it has no subwords "
                f"(vocab_size={vocab_size}) and no special tokens ({', '.join(special_tokens)})"
            )
        if self._characters is None:
            return byte_tokenizer()
        return train_tokenizer([self._characters])


def _encode_file(path: str, unit: str) -> tuple[np.ndarray, str | None]:
    """Returns the token ids of a file, and its characters in the order of their ids.

    The characters are None where a token is a byte.
    """
    content = _read(path)
    if unit == "bytes":
        return np.frombuffer(content, np.uint8), None
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.start}); read it with data.unit=bytes"
        ) from error
    # the id of a character is its rank among the code points of the text
    code_points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    vocabulary, token_ids = np.unique(code_points, return_inverse=True)
    characters = "".join(chr(code_point) for code_point in vocabulary)
    return token_ids.astype(np.int32), characters


def _read(path: str) -> bytes:
    """Returns the content of a file, or Python's help texts where the path is empty."""
    if not path:
        from pydoc_data.topics import topics

        return "\n".join(topics[name] for name in sorted(topics)).encode()
    try:
        return typed_path(path).read_bytes()
    except OSError as error:
        raise UserError(f"data.path={path} cannot be read: {error.strerror}") from error
