"""Tokens of a text: its characters, bytes or subwords."""

import functools
from typing import Literal, cast

import numpy as np
from jaxtyping import Shaped
from tokenizers import Tokenizer, models, pre_tokenizers

from famx.data._subwords import train_byte_subwords
from famx.data._tokenizers import byte_tokenizer, list_characters, train_tokenizer
from famx.notation import Subwords, UserError

Unit = Literal["chars", "bytes", "bpe", "unigram"]

LINES_AT_ONCE = 10_000  # lines that are encoded at once


def unit_tokenizer(text: str | bytes, n_train: int, unit: Unit, vocab_size: int) -> Tokenizer:
    """Builds the tokenizer of a text.

    Args:
        text: the full text, whose characters are those of `unit="chars"`; bytes for "bytes".
        n_train: number of its first characters from which subwords are learned.
        unit: kind of token.
        vocab_size: number of subwords.

    Raises:
        UserError: subwords cannot be learned, see `train_byte_subwords`.
    """
    if isinstance(text, bytes):
        return byte_tokenizer()
    if unit == "chars":
        return train_tokenizer(["".join(map(chr, np.unique(_code_points(text)).tolist()))])
    return _train(text[:n_train], vocab_size, cast(Subwords, unit))


@functools.lru_cache(maxsize=1)
def _train(text: str, vocab_size: int, kind: Subwords) -> Tokenizer:
    # all splits of a text have the same tokenizer
    return train_byte_subwords(text.splitlines(keepends=True), vocab_size, kind)


def encode_units(
    text: str | bytes, tokenizer: Tokenizer, unit: Unit, name: str
) -> Shaped[np.ndarray, " tokens"]:
    """Returns the token ids of a text.

    Args:
        text: bytes for `unit="bytes"`.
        tokenizer: tokenizer of the unit, perhaps of another text.
        name: name of the text in messages.

    Raises:
        UserError: the tokenizer is one of another unit, or has no token for a character.
    """
    if unit_of(tokenizer) != unit:
        raise UserError(f"data.unit={unit} is not the unit of the run that reads {name}")
    if isinstance(text, bytes):
        return np.frombuffer(text, np.uint8)
    if unit == "chars":
        return _encode_characters(text, tokenizer, name)
    lines = text.splitlines(keepends=True)
    parts = []
    for start in range(0, len(lines), LINES_AT_ONCE):
        for encoding in tokenizer.encode_batch_fast(lines[start : start + LINES_AT_ONCE]):
            parts.append(np.asarray(encoding.ids, np.int32))
    return np.concatenate([*parts, np.zeros(0, np.int32)])


def unit_of(tokenizer: Tokenizer) -> Unit | None:
    """Returns the unit of a tokenizer of texts; None for tokenizers of other data."""
    if isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        return "bpe" if isinstance(tokenizer.model, models.BPE) else "unigram"
    vocabulary = tokenizer.get_vocab()
    if vocabulary == byte_tokenizer().get_vocab():
        return "bytes"
    return "chars" if all(len(token) == 1 for token in vocabulary) else None


def _encode_characters(text: str, tokenizer: Tokenizer, name: str) -> Shaped[np.ndarray, " tokens"]:
    """Returns the ids of characters, which are their ranks among the code points."""
    vocabulary = _code_points("".join(sorted(tokenizer.get_vocab())))
    code_points = _code_points(text)
    ids = np.searchsorted(vocabulary, code_points)
    is_known = vocabulary[ids.clip(max=len(vocabulary) - 1)] == code_points
    if not is_known.all():
        first = int(np.argmin(is_known))
        unknown = [chr(code_point) for code_point in np.unique(code_points[~is_known]).tolist()]
        raise UserError(
            f"{name} has characters that the run has no tokens for: {list_characters(unknown)}; "
            f"the first is character {first + 1:,}, and a run with data.unit=bytes reads any"
        )
    return ids.astype(np.int32)


def _code_points(text: str) -> Shaped[np.ndarray, " characters"]:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)
