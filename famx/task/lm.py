"""Language model: predicts each next character or byte from those before it."""

import functools
import re
from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float
from tokenizers import Tokenizer, pre_tokenizers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from famx import registry
from famx.nn.batch import Batch
from famx.nn.masks import length_mask
from famx.notation import Modality
from famx.registry import register
from famx.task.base import Decoder, Task

IGNORED = -100  # target of padding, which cross_entropy ignores


@register
class LanguageModel(Task):
    """loss = -log p(next | before), the mean over positions, in nats.

    A row of a batch has one more id than predictions.

    Args:
        tokenizer: token ids <-> text.
        decode: factory of the decoder.
    """

    modality: ClassVar[Modality] = Modality.TEXT
    causal: ClassVar[bool] = True
    output: ClassVar[str] = "tokens"
    predicts_inputs: ClassVar[bool] = True
    selection_metric: ClassVar[str] = "loss"
    default_parts: ClassVar[dict[str, str]] = {
        "data": "text",
        "frontend": "tokens",
        "decode": "lm_greedy",
    }

    def __init__(self, tokenizer: Tokenizer, decode: Callable[..., Decoder] | None = None):
        if decode is None:
            decoder = registry.build("decode", {"name": "lm_greedy"}, tokenizer=tokenizer)
        else:
            decoder = decode(tokenizer=tokenizer)
        super().__init__(tokenizer, decoder)
        # characters of each token, by its id
        vocabulary = tokenizer.get_vocab()
        self._characters = torch.zeros(max(vocabulary.values()) + 1, dtype=torch.long)
        is_bytes = isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel)
        for token, index in vocabulary.items():
            self._characters[index] = n_characters(token, is_bytes)

    def count(self, batch: Batch) -> int:
        """Counts the predicted ids."""
        return int(batch.lengths.sum()) - len(batch.ids)

    def count_characters(self, batch: Batch) -> int:
        """Counts the characters of the predicted ids."""
        ids = batch.inputs[:, 1:].cpu()
        real = length_mask(batch.lengths.cpu() - 1, ids.shape[1])
        return int(self._characters[ids[real]].sum())

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        # without padding no lengths are passed, so attention needs no mask
        lengths = batch.lengths - 1 if batch.padding else None
        scores, lengths = model(batch.inputs[:, :-1], lengths)
        targets = batch.inputs[:, 1:]
        padding = ~length_mask(lengths, targets.shape[1])
        targets = targets.masked_fill(padding, IGNORED)
        return cross_entropy(scores.float().flatten(0, 1), targets.flatten())

    def evaluate_batch(self, model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], list[str]]:
        """Computes the loss alone: a continuation that differs from the text is no error."""
        return self.loss(model, batch), []


def n_characters(token: str, is_bytes: bool = False) -> int:
    """Returns the number of characters of a token; a byte that continues a character has none.

    Args:
        token: characters, or one byte in the form `<0xC3>`.
        is_bytes: whether each character of the token stands for a byte, as in GPT-2.
    """
    if is_bytes:
        return sum(symbol not in _continuations() for symbol in token)
    byte = re.fullmatch("<0x([0-9A-F]{2})>", token)
    if byte is None:
        return len(token)
    # the first bits of such a byte of UTF-8 are 10
    return 0 if int(byte[1], 16) >> 6 == 0b10 else 1


@functools.cache
def _continuations() -> frozenset[str]:
    """Returns the symbols of the bytes 80 to BF, the second ones of U+0080 to U+00BF."""
    symbols = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    characters = map(chr, range(0x80, 0xC0))
    return frozenset(symbols.pre_tokenize_str(character)[0][0][-1] for character in characters)
