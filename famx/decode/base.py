"""Decoders: the interface, from a model's scores to texts."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from famx.nn.batch import Batch
from famx.nn.encoding import EncoderDecoder, Encoding
from famx.notation import UserError


class Decoder(ABC):
    """Turns a model's scores into texts; chosen for training, evaluation or transcription.

    Args:
        tokenizer: token ids <-> text.

    Attributes:
        output: kind of scores that it decodes, "frames", "tokens", "labels" or "text"; must be one
            that the task's model returns.
        path_options: hyperparameters that are paths. A run stores them as absolute paths, so that
            it can be used from any folder.
    """

    output: ClassVar[str]
    path_options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    @abstractmethod
    def __call__(self, model: nn.Module, batch: Batch) -> list[str]:
        """Decodes a batch to one text per row."""


class FrameDecoder(Decoder):
    """A decoder of frame-wise scores with a blank (id 0), which needs one pass of the model."""

    output = "frames"

    @abstractmethod
    def decode_tokens(
        self, scores: Float[Tensor, "b t v"], lengths: Int[Tensor, " b"]
    ) -> list[list[int]]:
        """Decodes the scores of a batch to the token ids of each row, without blanks.

        Args:
            scores: scores before the softmax.
            lengths: frames of each row; those beyond them are padding.
        """

    def decode_scores(
        self, scores: Float[Tensor, "b t v"], lengths: Int[Tensor, " b"]
    ) -> list[str]:
        """Decodes the scores of a batch to one text per row."""
        return [self.text_of(ids) for ids in self.decode_tokens(scores, lengths)]

    def text_of(self, tokens: list[int]) -> str:
        """Returns the text of token ids."""
        return self.tokenizer.decode(tokens)

    @torch.inference_mode()
    def __call__(self, model: nn.Module, batch: Batch) -> list[str]:
        return self.decode_scores(*model(batch.inputs, batch.lengths))


class TextDecoding(Decoder):
    """Decodes with a model whose decoder predicts each token from the tokens before it.

    A text begins with id 1, which also ends it. It has at most `limits` tokens, see `Encoding`.
    """

    output = "text"

    @abstractmethod
    def decode_encoding(self, model: EncoderDecoder, encoding: Encoding) -> list[str]:
        """Decodes encoded signals to one text per row."""

    @torch.inference_mode()
    def __call__(self, model: nn.Module, batch: Batch) -> list[str]:
        if not isinstance(model, EncoderDecoder):
            raise UserError(f"{type(self).__name__} needs a model with a decoder of texts")
        return self.decode_encoding(model, model.encode(batch.inputs, batch.lengths))
