"""Connectionist temporal classification: speech to text, frame by frame (Graves et al. 2006)."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar

from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import ctc_loss

from famx import kernels
from famx.nn.batch import Batch
from famx.notation import Modality
from famx.registry import register
from famx.task._wer import error_rate
from famx.task.base import OnePassTask, Score, ScoresDecoder


@register
class CTC(OnePassTask):
    """loss = -log p(text | signal) / tokens, p summed over all alignments; token 0 is the blank.

    Args:
        tokenizer: its first token is the blank.
        decode: factory of the decoder.
        vocab_size: number of tokens of the tokenizer; 0 for characters, of which fast speech has
            more than frames of 40 ms.
    """

    modality: ClassVar[Modality] = Modality.SPEECH
    causal: ClassVar[bool] = False
    output: ClassVar[str] = "frames"
    selection_metric: ClassVar[str] = "wer"
    default_parts: ClassVar[dict[str, str]] = {
        "data": "spoken",
        "frontend": "log_mel",
        "decode": "ctc_greedy",
    }
    special_tokens: ClassVar[tuple[str, ...]] = ("<blank>",)

    def __init__(
        self,
        tokenizer: Tokenizer,
        decode: Callable[..., ScoresDecoder] | None = None,
        *,
        vocab_size: int = 96,
    ):
        super().__init__(tokenizer, decode)
        self.vocab_size = vocab_size

    def count(self, batch: Batch) -> int:
        """Counts the target tokens."""
        return int(batch.target_lengths.sum())

    def score(self, references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, Score]:
        """Computes word and character error rates."""
        return {
            "wer": error_rate(references, hypotheses, "word"),
            "cer": error_rate(references, hypotheses, "char"),
        }

    def reject(self, n_frames: int, text: str) -> str | None:
        """Rejects texts that need more frames: one per token, and one between equal neighbours."""
        # CTC emits a blank between equal neighbours
        ids = self.tokenizer.encode(text).ids
        needed = len(ids) + sum(a == b for a, b in pairwise(ids))
        if n_frames >= needed:
            return None
        return f"has {n_frames} frames and its text needs {needed}, more than CTC can emit"

    def loss_of_scores(
        self, scores: Float[Tensor, "b t v"], lengths: Int[Tensor, " b"], batch: Batch
    ) -> Float[Tensor, ""]:
        # in fp32 also under autocast
        log_probs = scores.float().log_softmax(-1)
        if kernels.available(scores.device):
            # torch's loss on CUDA waits for the lengths, and its gradient is not deterministic
            from famx.kernels.ctc import ctc_loss as ctc_loss_on_device

            total = ctc_loss_on_device(log_probs, batch.targets, lengths, batch.target_lengths)
        else:
            total = ctc_loss(
                log_probs.transpose(0, 1),  # time first, as torch expects
                batch.targets,
                lengths,
                batch.target_lengths,
                reduction="sum",
                zero_infinity=True,
            )
        # counted on the device: in a CUDA graph, a number of the host would stay that of one batch
        # at least 1: a text of characters that training never saw has no tokens
        return total / batch.target_lengths.sum().clamp(min=1)
