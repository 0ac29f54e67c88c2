"""Tokenizers of characters, subwords and bytes."""

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from famx.notation import UserError
from famx.registry import suggest


def train_tokenizer(
    texts: Iterable[str], special_tokens: Sequence[str] = (), vocab_size: int = 0
) -> Tokenizer:
    """Builds a tokenizer of the characters of `texts`, or trains one of subwords.

    Args:
        texts: texts to read.
        special_tokens: tokens that no text contains, such as CTC's blank; they get the first ids.
        vocab_size: number of subwords, special tokens and characters included; 0 for a tokenizer
            of characters, in the order of their code points.
    """
    if vocab_size:
        return _train_subwords(texts, special_tokens, vocab_size)
    # BPE without merges: each character is a token
    characters: set[str] = set().union(*texts)
    vocabulary = [*special_tokens, *sorted(characters)]
    token_ids = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(vocab=token_ids, merges=[]))
    # tokens are joined without spaces between them
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(special_tokens))
    return tokenizer


def _train_subwords(
    texts: Iterable[str], special_tokens: Sequence[str], vocab_size: int
) -> Tokenizer:
    """Trains subwords by byte-pair encoding (arXiv:1508.07909), with a mark where words begin."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(special_tokens), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """Builds a tokenizer with one token for each byte of UTF-8, whose id is the byte."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def encode(tokenizer: Tokenizer, text: str, name: str) -> list[int]:
    """Returns the token ids of `text`, the text of the utterance `name`.

    Raises:
        UserError: the text has characters outside the vocabulary, or is no label of training.
    """
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
    # unknown characters get no token, so the decoded text lacks them
    if tokenizer.decode(ids) != text:
        unknown = sorted(set(text) - {" "} - set(tokenizer.get_vocab()))
        characters = " ".join(repr(character) for character in unknown)
        raise UserError(f"{name} has characters outside the vocabulary: {characters}")
    return ids
