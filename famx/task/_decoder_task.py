"""Tasks whose model has a decoder of texts: one pass for the loss, one encoding for both."""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from famx import registry
from famx.nn.batch import Batch
from famx.nn.encoding import EncoderDecoder
from famx.notation import UserError
from famx.task._next_tokens import text_inputs
from famx.task.base import Decoder, EncodingDecoder, ScoresDecoder, Task


class DecoderTask(Task):
    """A task whose texts come from a decoder that reads the frames of an encoder.

    Args:
        tokenizer: its first token is the blank, the second one begins and ends each text.
        decode: factory of the decoder; None for that of `default_parts`.

    Raises:
        UserError: the decoder cannot use an encoding.
    """

    causal: ClassVar[bool] = False
    output: ClassVar[str] = "text"
    special_tokens: ClassVar[tuple[str, ...]] = ("<blank>", "<end>")

    def __init__(self, tokenizer: Tokenizer, decode: Callable[..., Decoder] | None):
        if decode is None:
            choice = {"name": self.default_parts["decode"]}
            decoder = registry.build("decode", choice, tokenizer=tokenizer)
        else:
            decoder = decode(tokenizer=tokenizer)
        if not isinstance(decoder, EncodingDecoder | ScoresDecoder):
            raise UserError(
                f"task={self.name} needs a decoder with decode_encoding or decode_scores, but "
                f"{type(decoder).__name__} has neither"
            )
        super().__init__(tokenizer, decoder)

    @property
    def name(self) -> str:
        """The name of the part, which is that of its file."""
        return type(self).__module__.rpartition(".")[2]

    @abstractmethod
    def loss_of_outputs(
        self,
        frame_scores: Float[Tensor, "b t v"],
        lengths: Int[Tensor, " b"],
        text_scores: Tensor,
        batch: Batch,
    ) -> Float[Tensor, ""]:
        """Computes the mean loss from the scores of the frames and of the texts.

        Args:
            frame_scores: scores of the frames, see `Encoding`.
            lengths: frames of each row without padding.
            text_scores: what `EncoderDecoder.text_scores` of the model returns.
        """

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        text, text_lengths = text_inputs(batch)
        # one call, as several processes require
        frame_scores, lengths, text_scores = model(
            batch.inputs, batch.lengths, batch.spans, text, text_lengths
        )
        return self.loss_of_outputs(frame_scores, lengths, text_scores, batch)

    def evaluate_batch(self, model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], list[str]]:
        if not isinstance(model, EncoderDecoder):
            raise UserError(f"task={self.name} needs a model with a decoder, not {type(model)}")
        # evaluation blanks nothing, since only training batches have spans
        encoding = model.encode(batch.inputs, batch.lengths, batch.spans)
        if isinstance(self.decoder, EncodingDecoder):
            texts = self.decoder.decode_encoding(model, encoding)
        else:
            assert isinstance(self.decoder, ScoresDecoder)
            texts = self.decoder.decode_scores(encoding.scores, encoding.lengths)
        # after the steps of decoding, so that metrics are those of the whole texts
        text, text_lengths = text_inputs(batch)
        text_scores = model.text_scores(text, encoding, text_lengths)
        loss = self.loss_of_outputs(encoding.scores, encoding.lengths, text_scores, batch)
        return loss, texts
