"""Tokenizers of subwords: byte-pair encoding and unigram, of words of characters or of raw text."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from famx.notation import Subwords, UserError

# characters of a word; the time of byte-pair encoding grows with their square
MAX_WORD = 10_000
N_ROUNDS = 5  # of Viterbi training
N_BYTES = 256

log = logging.getLogger(__name__)


def train_subwords(
    texts: Sequence[str], special_tokens: Sequence[str], vocab_size: int, kind: Subwords
) -> Tokenizer:
    """Trains subwords of words, with a mark where words begin.

    Characters that no text has get no token.

    Args:
        texts: normalised texts, whose words are separated by single spaces.
        special_tokens: tokens that get the first ids.
        vocab_size: number of tokens, special tokens and characters included.
        kind: "bpe" (arXiv:1508.07909) or "unigram" (arXiv:1804.10959).

    Raises:
        UserError: a word is so long that its encoding would take minutes, or there are fewer
            tokens than characters.
    """
    for text in texts:
        check_words(text, "a text of the training data")
    tokenizer = _untrained(kind)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    _train(tokenizer, texts, special_tokens, vocab_size, [], f"task.vocab_size={vocab_size}")
    if kind == "unigram":
        characters = sorted(set().union(*texts) | {" "})
        tokenizer.normalizer = _only(characters)
    return tokenizer


def train_byte_subwords(lines: Sequence[str], vocab_size: int, kind: Subwords) -> Tokenizer:
    """Trains subwords of the bytes of a text, which encode any text without loss, as in GPT-2.

    Args:
        lines: lines of the text, with their ends.
        vocab_size: number of tokens, the 256 bytes included.
        kind: "bpe" or "unigram".

    Raises:
        UserError: there are fewer tokens than bytes, or a word is too long.
    """
    if vocab_size < N_BYTES:
        raise UserError(
            f"data.vocab_size={vocab_size} must be at least {N_BYTES}: each byte is a token"
        )
    for line in lines:
        check_words(line, "a line of the training text", "data.unit=chars")
    tokenizer = _untrained(kind)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    _train(tokenizer, lines, (), vocab_size, alphabet, f"data.vocab_size={vocab_size}")
    return tokenizer


def _untrained(kind: Subwords) -> Tokenizer:
    return Tokenizer(models.BPE() if kind == "bpe" else models.Unigram())


def _train(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    special_tokens: Sequence[str],
    vocab_size: int,
    alphabet: Sequence[str],
    option: str,
) -> None:
    """Trains a tokenizer in place; the same texts always lead to the same tokenizer."""
    options: dict[str, Any] = {
        "vocab_size": vocab_size,
        "special_tokens": list(special_tokens),
        "initial_alphabet": list(alphabet),
        "show_progress": False,
    }
    if isinstance(tokenizer.model, models.BPE):
        tokenizer.train_from_iterator(texts, trainers.BpeTrainer(**options))
        return
    try:
        tokenizer.train_from_iterator(texts, trainers.UnigramTrainer(**options))
    except Exception as error:  # tokenizers raises nothing more specific
        raise UserError(f"{option} cannot be trained by unigram: {error}") from error
    _settle(tokenizer, texts, special_tokens)
    n_tokens = tokenizer.get_vocab_size()
    if n_tokens < vocab_size:
        log.warning(
            "%s: unigram has learned only %d tokens, since few parts of words are in several "
            "words; byte-pair encoding (bpe) learns more",
            option,
            n_tokens,
        )


def _settle(tokenizer: Tokenizer, texts: Sequence[str], special_tokens: Sequence[str]) -> None:
    """Sets ids and scores of a unigram model by its tokens and the texts alone.

    The library adds up probabilities by several threads in any order, so that its scores, and the
    ids that follow from them, differ each time. Here the ids are in the order of the tokens, and
    the scores are ln((n + 1) / N) with the counts n of the best encodings of all texts (Viterbi
    training), which at first are those of the fewest tokens.
    """
    learned = sorted(tokenizer.get_vocab().keys() - set(special_tokens))
    tokens = [*special_tokens, *learned]
    scores = [0.0] * len(special_tokens) + [-1.0] * len(learned)
    for _ in range(N_ROUNDS):
        tokenizer.model = models.Unigram(list(zip(tokens, scores, strict=True)))
        counts: Counter[int] = Counter()
        for encoding in tokenizer.encode_batch_fast(list(texts)):
            counts.update(encoding.ids)
        total = counts.total() + len(learned)
        for index in range(len(special_tokens), len(tokens)):
            scores[index] = math.log((counts[index] + 1) / total)
    tokenizer.model = models.Unigram(list(zip(tokens, scores, strict=True)))


def _only(characters: Iterable[str]) -> normalizers.Normalizer:
    """Returns a normalizer that removes all other characters, which a unigram model refuses."""
    codes = "".join(f"\\x{{{ord(character):X}}}" for character in characters)
    return normalizers.Replace(Regex(f"[^{codes}]"), "")


def check_words(text: str, name: str, remedy: str = "task.vocab_size=0") -> None:
    """Raises a UserError if a word is longer than `MAX_WORD`."""
    if len(text) <= MAX_WORD:
        return
    longest = max(map(len, text.split()), default=0)
    if longest > MAX_WORD:
        raise UserError(
            f"{name} has a word of {longest:,} characters; subwords are for words of at most "
            f"{MAX_WORD:,}, and {remedy} uses characters"
        )
