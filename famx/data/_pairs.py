"""Pairs of a source and a target text: what data sets of any form share."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor

from famx.data._fingerprint import digest
from famx.data._normalisers import NORMALISERS, Normaliser
from famx.data._tokenizers import known_characters, list_characters, train_tokenizer
from famx.data.base import Dataset
from famx.nn.batch import Example
from famx.nn.encoding import END_ID
from famx.notation import Modality, Subwords, UserError

ENCODED_AT_ONCE = 10_000  # texts

log = logging.getLogger(__name__)


class Pair(NamedTuple):
    """A source and its target, and their place for messages."""

    source: str
    target: str
    location: str


class PairDataset(Dataset):
    """Texts with their translations; an item has the tokens of the source and the target's text.

    The tokens are those of the run, from one tokenizer of both sides, and the end. Before
    `use_tokenizer` they are the characters of the split, without an end.

    Args:
        split: "train", "dev" or "test".
        pairs: the pairs as they are written.
        normaliser: normalisation of both sides.
        skip_bad: leaves out pairs with an empty side and counts them; otherwise the first one is
            refused.

    Raises:
        UserError: a side is empty, or no pair remains.
    """

    modality: ClassVar[Modality] = Modality.TEXT

    def __init__(
        self, split: str, pairs: Sequence[Pair], normaliser: Normaliser, skip_bad: bool
    ) -> None:
        self._split = split
        self.normaliser = normaliser
        self.skip_bad = skip_bad
        remaining = _normalised(pairs, normaliser, skip_bad)
        self.sources = [pair.source for pair in remaining]
        self.texts = [pair.target for pair in remaining]
        self.ids = [f"{split}-{i:05d}" for i in range(len(remaining))]
        self.lengths = [float(len(source)) for source in self.sources]
        self._tokenizer = self.build_tokenizer()
        self._has_end = False

    def __getitem__(self, index: int) -> Example:
        tokens = encode_source(self.sources[index], self._tokenizer, self._has_end)
        return Example(self.ids[index], tokens, self.texts[index])

    def build_tokenizer(
        self,
        vocab_size: int = 0,
        special_tokens: Sequence[str] = (),
        subwords: Subwords = "bpe",
    ) -> Tokenizer:
        """Builds a tokenizer of the characters of both sides, or of `vocab_size` subwords."""
        return train_tokenizer([*self.sources, *self.texts], special_tokens, vocab_size, subwords)

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Encodes the sources by the tokenizer of a run; a warning counts unknown characters.

        Raises:
            UserError: the tokenizer has no token for the end, since the run is of another task.
        """
        if END_ID not in tokenizer.get_added_tokens_decoder():
            raise UserError("pairs of texts are data for task=translate")
        warn_of_unknown(self.sources, tokenizer, f"sources of {self._split}")
        self._tokenizer = tokenizer
        self._has_end = True
        self.lengths = [float(n) for n in source_lengths(self.sources, tokenizer)]

    def fingerprint(self) -> dict[str, str]:
        # lengths depend on the tokenizer
        aspects = super().fingerprint()
        del aspects["lengths"]
        rows = sorted(zip(self.ids, self.sources, strict=True))
        return aspects | {"sources": digest(f"{name}\t{source}" for name, source in rows)}

    def contents(self) -> Sequence[str]:
        return [f"{source}\t{text}" for source, text in zip(self.sources, self.texts, strict=True)]


def encode_source(source: str, tokenizer: Tokenizer, has_end: bool = True) -> Int[Tensor, " n"]:
    """Returns the token ids of a source and its end, as a model reads them."""
    ending = [END_ID] if has_end else []
    return torch.tensor([*tokenizer.encode(source).ids, *ending])


def warn_of_unknown(sources: Sequence[str], tokenizer: Tokenizer, name: str) -> None:
    """Warns of characters that a tokenizer does not have, so that the model does not see them."""
    known = known_characters(tokenizer)
    unknown: Counter[str] = Counter()
    n_sources = 0
    for source in sources:
        characters = [character for character in source if character not in known]
        unknown.update(characters)
        n_sources += bool(characters)
    if unknown:
        log.warning(
            "%d of %d %s have characters that no training text has: %s; the model does not see "
            "these %d characters",
            n_sources,
            len(sources),
            name,
            list_characters(unknown),
            unknown.total(),
        )


def source_lengths(sources: Sequence[str], tokenizer: Tokenizer) -> list[int]:
    """Returns the number of tokens of each source, its end included."""
    lengths = []
    for start in range(0, len(sources), ENCODED_AT_ONCE):
        part = list(sources[start : start + ENCODED_AT_ONCE])
        lengths += [len(encoding.ids) + 1 for encoding in tokenizer.encode_batch_fast(part)]
    return lengths


def _normalised(pairs: Sequence[Pair], normaliser: Normaliser, skip_bad: bool) -> list[Pair]:
    """Returns the normalised pairs, without those of which a side is empty."""
    normalise = NORMALISERS[normaliser]
    remaining = []
    first = ""
    for pair in pairs:
        source = normalise(pair.source)
        target = normalise(pair.target)
        if source and target:
            remaining.append(Pair(source, target, pair.location))
            continue
        side, written = ("target", pair.target) if source else ("source", pair.source)
        # a text of punctuation alone may be empty after normalising
        cause = f", {written!r} after data.normaliser={normaliser}" if written.strip() else ""
        problem = f"{pair.location}: the {side} is empty{cause}"
        if not skip_bad:
            raise UserError(f"{problem}; data.skip_bad=true leaves out such pairs")
        first = first or problem
    if first:
        log.warning(
            "%d of %d pairs are left out: %s", len(pairs) - len(remaining), len(pairs), first
        )
    if not remaining:
        raise UserError("there is no pair with a source and a target")
    return remaining
