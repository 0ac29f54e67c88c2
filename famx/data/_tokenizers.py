"""Tokenizers of characters, subwords and bytes."""

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models

from famx.data._subwords import check_words, train_subwords
from famx.notation import Subwords, UserError, suggest

WORD_MARK = "\N{LOWER ONE EIGHTH BLOCK}"  # Metaspace's mark where words begin
MAX_LISTED = 20  # characters in one message


def train_tokenizer(
    texts: Iterable[str],
    special_tokens: Sequence[str] = (),
    vocab_size: int = 0,
    subwords: Subwords = "bpe",
) -> Tokenizer:
    """Builds a tokenizer of the characters of `texts`, or trains one of subwords.

    Args:
        texts: texts to read.
        special_tokens: tokens that no text contains, such as CTC's blank; they get the first ids.
        vocab_size: number of subwords, special tokens and characters included; 0 for a tokenizer
            of characters, in the order of their code points.
        subwords: kind of the subwords.

    Raises:
        UserError: the subwords cannot be trained, see `train_subwords`.
    """
    if vocab_size:
        return train_subwords(list(texts), special_tokens, vocab_size, subwords)
    # BPE without merges: each character is a token
    characters: set[str] = set().union(*texts)
    vocabulary = [*special_tokens, *sorted(characters)]
    token_ids = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(vocab=token_ids, merges=[]))
    # tokens are joined without spaces between them
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(special_tokens))
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """Builds a tokenizer with one token for each byte of UTF-8, whose id is the byte."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def encode(tokenizer: Tokenizer, text: str, name: str, is_strict: bool = True) -> list[int]:
    """Returns the token ids of `text`, the text of the utterance `name`.

    Args:
        is_strict: whether characters outside the vocabulary are refused; otherwise they get no ids.

    Raises:
        UserError: the text has characters outside the vocabulary, or is no label of training.
    """
    if tokenizer.pre_tokenizer is not None:
        check_words(text, name)
    if isinstance(tokenizer.model, models.WordLevel):
        # a tokenizer of labels, each of which is one token
        label_id = tokenizer.token_to_id(text)
        if label_id is None:
            raise UserError(
                f"{name} has the label {text!r}, which the training data does not have"
                f"{suggest(text, sorted(tokenizer.get_vocab()))}"
            )
        return [label_id]
    ids = tokenizer.encode(text).ids
    if not is_strict:
        return ids
    # unknown characters get no token, so the decoded text lacks them
    decoded = tokenizer.decode(ids)
    if decoded != text:
        unknown = set(text) - known_characters(tokenizer)
        if not unknown:
            raise UserError(f"{name} is encoded as {decoded!r}, its text is {text!r}")
        raise UserError(f"{name} has characters outside the vocabulary: {list_characters(unknown)}")
    return ids


def known_characters(tokenizer: Tokenizer) -> set[str]:
    """Returns the characters that a tokenizer of characters or subwords can encode."""
    # each character of subwords is a token too
    characters = {token for token in tokenizer.get_vocab() if len(token) == 1}
    if WORD_MARK in characters:
        characters.add(" ")
    return characters


def list_characters(characters: Iterable[str]) -> str:
    """Returns characters in quotes, for messages."""
    names = [f"{c!r} (space)" if c == " " else repr(c) for c in sorted(characters)]
    remaining = len(names) - MAX_LISTED
    if remaining > 0:
        names[MAX_LISTED:] = [f"and {remaining} more"]
    return " ".join(names)
