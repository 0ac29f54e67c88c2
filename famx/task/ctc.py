"""Connectionist temporal classification: speech to text, frame by frame (Graves et al. 2006)."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import ctc_loss, kl_div

from famx import kernels
from famx.nn.batch import Batch
from famx.nn.masks import length_mask
from famx.notation import Modality
from famx.registry import register
from famx.task._wer import error_rate
from famx.task.base import OnePassTask, Score, ScoresDecoder


@register
class CTC(OnePassTask):
    """loss = -log p(text | signal) / tokens, p summed over all alignments; token 0 is the blank.

    With consistency c, training compares two views a and b of a batch, which differ in what is
    masked (CR-CTC, arXiv:2410.05101): the loss is the mean of both, plus

        c / (2 tokens) * sum over frames of KL(b || a) + KL(a || b),

    in which the first distribution of each KL divergence has no gradient. The pass has twice as
    many rows, so half as many steps or seconds of a batch take as long.

    Args:
        tokenizer: its first token is the blank.
        decode: factory of the decoder.
        vocab_size: number of tokens of the tokenizer; 0 for characters, of which fast speech has
            more than frames of 40 ms.
        consistency: weight c, 0 for one view; the paper has 0.2, and 2.5 times as much masking of
            time as without it.
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
        consistency: float = 0.0,
    ):
        if consistency < 0:
            raise ValueError(f"consistency={consistency} must be at least 0")
        super().__init__(tokenizer, decode)
        self.vocab_size = vocab_size
        self.consistency = consistency

    @property
    def compares_views(self) -> bool:
        """Whether training batches need the spans of a second view."""
        return self.consistency > 0

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

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        if not self.compares_views or batch.spans is None or batch.other_spans is None:
            return super().loss(model, batch)
        # one pass, whose rows are those of the first view, then those of the second
        inputs = batch.inputs.repeat(2, 1)
        spans = torch.cat([batch.spans, batch.other_spans])
        scores, lengths = model(inputs, batch.lengths.repeat(2), spans)
        log_probs = scores.float().log_softmax(-1)
        tokens = batch.target_lengths.sum().clamp(min=1)
        divergence = divergence_of_views(log_probs, lengths) / (2 * tokens)
        return self.mean_loss(log_probs, lengths, batch) + self.consistency * divergence

    def loss_of_scores(
        self, scores: Float[Tensor, "b t v"], lengths: Int[Tensor, " b"], batch: Batch
    ) -> Float[Tensor, ""]:
        # in fp32 also under autocast
        return self.mean_loss(scores.float().log_softmax(-1), lengths, batch)

    def mean_loss(
        self, log_probs: Float[Tensor, "rows t v"], lengths: Int[Tensor, " rows"], batch: Batch
    ) -> Float[Tensor, ""]:
        """Computes the mean over tokens; rows are those of the batch, once or several times."""
        repeats = len(log_probs) // len(batch.targets)
        targets = batch.targets
        target_lengths = batch.target_lengths
        if repeats > 1:
            targets = targets.repeat(repeats, 1)
            target_lengths = target_lengths.repeat(repeats)
        if kernels.available(log_probs.device):
            # torch's loss on CUDA waits for the lengths, and its gradient is not deterministic
            from famx.kernels.ctc import ctc_loss as ctc_loss_on_device

            total = ctc_loss_on_device(log_probs, targets, lengths, target_lengths)
        else:
            total = ctc_loss(
                log_probs.transpose(0, 1),  # time first, as torch expects
                targets,
                lengths,
                target_lengths,
                reduction="sum",
                zero_infinity=True,
            )
        # counted on the device: in a CUDA graph, a number of the host would stay that of one batch
        # at least 1: a text of characters that training never saw has no tokens
        return total / target_lengths.sum().clamp(min=1)


def divergence_of_views(
    log_probs: Float[Tensor, "rows t v"], lengths: Int[Tensor, " rows"]
) -> Float[Tensor, ""]:
    """Sums KL(other view || view) over views, rows and frames without padding.

    The other view has no gradient.

    Args:
        log_probs: log probabilities of the first view of each row, then of the second.
        lengths: number of frames of each row.
    """
    others = log_probs.detach().roll(len(log_probs) // 2, 0)
    by_frame = kl_div(log_probs, others, reduction="none", log_target=True).sum(-1)
    return by_frame.masked_fill(~length_mask(lengths, log_probs.shape[1]), 0.0).sum()
