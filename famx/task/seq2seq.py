"""Speech to text by a decoder with attention, trained jointly with CTC (Watanabe et al. 2017)."""

from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from famx import registry
from famx.nn.batch import Batch
from famx.nn.encoding import EncoderDecoder
from famx.nn.masks import length_mask
from famx.notation import Modality, UserError
from famx.registry import register
from famx.task._wer import TextScores
from famx.task.base import Decoder, EncodingDecoder, ScoresDecoder, Task
from famx.task.ctc import CTC

END_ID = 1  # begins and ends each text; id 0 is CTC's blank
IGNORED = -100  # target of padding, which cross_entropy ignores


@register
class Seq2Seq(TextScores, Task):
    """loss = w CTC + (1 - w) CE, w = `ctc_weight`; CTC is the loss of `task=ctc` on the encoder.

    `CE = -sum_u log p(y_u | y_<u, signal) / tokens`, over the tokens of a text and its end, with
    label smoothing. A decoder predicts p; its layers alternate between attention to the text so far
    and to the frames of the encoder.

    Args:
        tokenizer: its first token is the blank, the second one begins and ends each text.
        decode: factory of the decoder, of texts or of CTC's frames.
        vocab_size: number of tokens of the tokenizer; 0 for characters.
        ctc_weight: w, from 0 to 1.
        label_smoothing: share of the target that is divided equally among all tokens, from 0 to
            below 1 (Szegedy et al. 2016).
    """

    modality: ClassVar[Modality] = Modality.SPEECH
    causal: ClassVar[bool] = False
    output: ClassVar[str] = "text"
    other_outputs: ClassVar[tuple[str, ...]] = ("frames",)
    has_decoder: ClassVar[bool] = True
    selection_metric: ClassVar[str] = "wer"
    default_parts: ClassVar[dict[str, str]] = {
        "data": "spoken",
        "frontend": "log_mel",
        "decode": "seq2seq_greedy",
    }
    special_tokens: ClassVar[tuple[str, ...]] = ("<blank>", "<end>")

    def __init__(
        self,
        tokenizer: Tokenizer,
        decode: Callable[..., Decoder] | None = None,
        *,
        vocab_size: int = 96,
        ctc_weight: float = 0.3,
        label_smoothing: float = 0.1,
    ):
        if not 0 <= ctc_weight <= 1:
            raise ValueError(f"ctc_weight={ctc_weight} must be from 0 to 1")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must be from 0 to below 1")
        if decode is None:
            choice = {"name": self.default_parts["decode"]}
            decoder = registry.build("decode", choice, tokenizer=tokenizer)
        else:
            decoder = decode(tokenizer=tokenizer)
        if not isinstance(decoder, EncodingDecoder | ScoresDecoder):
            raise UserError(
                "task=seq2seq needs a decoder with decode_encoding or decode_scores, but "
                f"{type(decoder).__name__} has neither"
            )
        super().__init__(tokenizer, decoder)
        self.ctc = CTC(tokenizer)
        self.vocab_size = vocab_size
        self.ctc_weight = ctc_weight
        self.label_smoothing = label_smoothing

    def count(self, batch: Batch) -> int:
        """Counts the target tokens, without the ends of texts."""
        return self.ctc.count(batch)

    def reject(self, n_frames: int, text: str) -> str | None:
        """Rejects texts that CTC cannot emit from so few frames, unless it has no weight."""
        return self.ctc.reject(n_frames, text) if self.ctc_weight else None

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        text, text_lengths = text_inputs(batch)
        # one call, as several processes require
        frame_scores, lengths, text_scores = model(
            batch.inputs, batch.lengths, batch.spans, text, text_lengths
        )
        return self.loss_of_outputs(frame_scores, lengths, text_scores, batch)

    def loss_of_outputs(
        self,
        frame_scores: Float[Tensor, "b t v"],
        lengths: Int[Tensor, " b"],
        text_scores: Float[Tensor, "b u v"],
        batch: Batch,
    ) -> Float[Tensor, ""]:
        """Computes the mean loss from the scores of the frames and of the tokens."""
        # targets: the tokens and the end, after each of which there is padding
        size = text_scores.shape[1]
        positions = torch.arange(size, device=text_scores.device)
        tokens = nn.functional.pad(batch.targets, (0, 1))
        is_end = positions == batch.target_lengths[:, None]
        targets = tokens.masked_fill(is_end, END_ID)
        padding = ~length_mask(batch.target_lengths + 1, size)
        targets = targets.masked_fill(padding, IGNORED)
        total = cross_entropy(
            text_scores.float().flatten(0, 1),
            targets.flatten(),
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        # both losses are means over the same tokens, counted on the device
        loss = total / batch.target_lengths.sum().clamp(min=1)
        ctc_loss = self.ctc.loss_of_scores(frame_scores, lengths, batch)
        return self.ctc_weight * ctc_loss + (1 - self.ctc_weight) * loss

    def evaluate_batch(self, model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], list[str]]:
        if not isinstance(model, EncoderDecoder):
            raise UserError(f"task=seq2seq needs a model with a decoder, not {type(model)}")
        # evaluation blanks nothing, since only training batches have spans
        encoding = model.encode(batch.inputs, batch.lengths, batch.spans)
        if isinstance(self.decoder, EncodingDecoder):
            texts = self.decoder.decode_encoding(model, encoding)
        else:
            assert isinstance(self.decoder, ScoresDecoder)
            texts = self.decoder.decode_scores(encoding.scores, encoding.lengths)
        # after the steps of decoding, so that metrics are those of the whole texts
        text, text_lengths = text_inputs(batch)
        text_scores = model.predict(text, encoding, text_lengths=text_lengths)
        loss = self.loss_of_outputs(encoding.scores, encoding.lengths, text_scores, batch)
        return loss, texts


def text_inputs(batch: Batch) -> tuple[Int[Tensor, "b u"], Int[Tensor, " b"]]:
    """Returns the inputs of a decoder, the beginning and the tokens of each text; their lengths."""
    text = nn.functional.pad(batch.targets, (1, 0), value=END_ID)
    return text, batch.target_lengths + 1
