"""Speech to text by a decoder of texts that is trained jointly with CTC on the frames."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor

from famx.nn.batch import Batch
from famx.notation import Modality, Subwords
from famx.task._decoder_task import DecoderTask
from famx.task._wer import TextScores
from famx.task.base import Decoder
from famx.task.ctc import CTC


class JointCTC(TextScores, DecoderTask):
    """loss = w CTC + (1 - w) L, w = `ctc_weight`; CTC is the loss of `task=ctc` on the encoder.

    A subclass defines L, the loss of the texts.

    Args:
        tokenizer: its first token is the blank, the second one begins and ends each text.
        decode: factory of the decoder, of texts or of CTC's frames.
        vocab_size: number of tokens of the tokenizer; 0 for characters.
        subwords: how the tokens are learned: by byte-pair encoding, or as a unigram model.
        ctc_weight: w, from 0 to 1.
    """

    modality: ClassVar[Modality] = Modality.SPEECH
    other_outputs: ClassVar[tuple[str, ...]] = ("frames",)
    selection_metric: ClassVar[str] = "wer"
    default_parts: ClassVar[dict[str, str]] = {
        "data": "spoken",
        "frontend": "log_mel",
        "decode": "seq2seq_greedy",
    }
    default_model: ClassVar[str] = "conformer_small"

    @property
    def trains_frames(self) -> bool:
        """Whether its loss trains the scores of the frames."""
        return self.ctc_weight > 0

    @classmethod
    def untrained_outputs(cls, options: Mapping[str, Any]) -> dict[str, str]:
        """Returns the outputs that these options leave untrained, with the reason and a remedy.

        The reason completes a sentence about the output.
        """
        weight = options["ctc_weight"]
        if weight == 0:
            remedy = "decode=seq2seq_greedy, or decode=seq2seq_beam with decode.ctc_weight=0"
            return {
                "frames": f"task.ctc_weight={weight} does not train: increase it, or use {remedy}"
            }
        if weight == 1:
            remedy = "decode=ctc_greedy"
            return {
                "text": f"task.ctc_weight={weight} does not train: decrease it, or use {remedy}"
            }
        return {}

    def __init__(
        self,
        tokenizer: Tokenizer,
        decode: Callable[..., Decoder] | None,
        vocab_size: int,
        subwords: Subwords,
        ctc_weight: float,
    ):
        if not 0 <= ctc_weight <= 1:
            raise ValueError(f"ctc_weight={ctc_weight} must be from 0 to 1")
        super().__init__(tokenizer, decode)
        self.ctc = CTC(tokenizer)
        self.vocab_size = vocab_size
        self.subwords = subwords
        self.ctc_weight = ctc_weight

    @abstractmethod
    def text_loss(
        self, text_scores: Tensor, lengths: Int[Tensor, " b"], batch: Batch
    ) -> Float[Tensor, ""]:
        """Computes the mean loss of the texts.

        Args:
            text_scores: what `EncoderDecoder.text_scores` of the model returns.
            lengths: frames of each row without padding.
        """

    def count(self, batch: Batch) -> int:
        """Counts the target tokens, without the ends of texts."""
        return self.ctc.count(batch)

    def reject(self, n_frames: int, text: str) -> str | None:
        """Rejects texts that CTC cannot emit from so few frames, unless it has no weight."""
        return self.ctc.reject(n_frames, text) if self.ctc_weight else None

    def loss_of_outputs(
        self,
        frame_scores: Float[Tensor, "b t v"],
        lengths: Int[Tensor, " b"],
        text_scores: Tensor,
        batch: Batch,
    ) -> Float[Tensor, ""]:
        # both losses are means over the same tokens, counted on the device
        ctc_loss = self.ctc.loss_of_scores(frame_scores, lengths, batch)
        loss = self.text_loss(text_scores, lengths, batch)
        return self.ctc_weight * ctc_loss + (1 - self.ctc_weight) * loss
