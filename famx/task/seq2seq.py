"""Speech to text by a decoder with attention, trained jointly with CTC (Watanabe et al. 2017)."""

from collections.abc import Callable
from typing import ClassVar

from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor

from famx.nn.batch import Batch
from famx.notation import Subwords
from famx.registry import register
from famx.task._joint_ctc import JointCTC
from famx.task._next_tokens import check_label_smoothing, next_token_loss
from famx.task.base import Decoder


@register
class Seq2Seq(JointCTC):
    """loss = w CTC + (1 - w) CE, w = `ctc_weight`; CTC is the loss of `task=ctc` on the encoder.

    `CE = -sum_u log p(y_u | y_<u, signal) / tokens`, over the tokens of a text and its end, with
    label smoothing. A decoder predicts p; its layers alternate between attention to the text so far
    and to the frames of the encoder.

    Args:
        tokenizer: its first token is the blank, the second one begins and ends each text.
        decode: factory of the decoder, of texts or of CTC's frames.
        vocab_size: number of tokens of the tokenizer; 0 for characters.
        subwords: how the tokens are learned: by byte-pair encoding, or as a unigram model.
        ctc_weight: w, from 0 to 1.
        label_smoothing: share of the target that is divided equally among all tokens, from 0 to
            below 1 (Szegedy et al. 2016).
    """

    decoder_kind: ClassVar[str] = "attention"

    def __init__(
        self,
        tokenizer: Tokenizer,
        decode: Callable[..., Decoder] | None = None,
        *,
        vocab_size: int = 96,
        subwords: Subwords = "bpe",
        ctc_weight: float = 0.3,
        label_smoothing: float = 0.1,
    ):
        check_label_smoothing(label_smoothing)
        super().__init__(tokenizer, decode, vocab_size, subwords, ctc_weight)
        self.label_smoothing = label_smoothing

    def text_loss(
        self, text_scores: Float[Tensor, "b u v"], lengths: Int[Tensor, " b"], batch: Batch
    ) -> Float[Tensor, ""]:
        return next_token_loss(text_scores, batch, self.label_smoothing)
