"""Tokenizers of characters, subwords and bytes."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from famx.notation import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


BLANK = "<blank>"


def train_tokenizer(
    texts: Iterable[str], special: Sequence[str] = (BLANK,), units: int = 0
) -> "Tokenizer":
    """The special tokens (0: the blank of CTC), then the characters of `texts` in the order of code points.

    With `units` above 0, words begin with a mark of their own, and pairs are merged into subwords until there are so
    many tokens (byte-pair encoding, arXiv:1508.07909).
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if units:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.Metaspace(),
            decoders.Metaspace(),
        )
        trainer = trainers.BpeTrainer(
            vocab_size=units, special_tokens=list(special), show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer
    vocabulary = [*special, *sorted(set().union(*texts))]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[])
    )
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def byte_tokenizer() -> "Tokenizer":
    """One token per byte of UTF-8, which is its id."""
    from tokenizers import Tokenizer, decoders, models

    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def encode(tokenizer: "Tokenizer", text: str, name: str) -> list[int]:
    """Token ids of `text`.

    Raises:
        UserError: `name`, the utterance, has characters outside the vocabulary.
    """
    ids = tokenizer.encode(text).ids
    if tokenizer.decode(ids) != text:
        unknown = sorted(set(text) - {" "} - set(tokenizer.get_vocab()))
        raise UserError(
            f"{name} has characters outside the vocabulary: {' '.join(map(repr, unknown))}"
        )
    return ids
