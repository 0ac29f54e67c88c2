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
from famx.notation import Modality, Subwords
from famx.registry import register
from famx.task._wer import TextScores
from famx.task.base import OnePassTask, ScoresDecoder

DEFAULT_CONSISTENCY = 0.2  # where a batch has two views


@register
class CTC(TextScores, OnePassTask):
    """loss = -log p(text | signal) / tokens, p summed over all alignments; token 0 is the blank.

    With consistency c, training compares two views a and b of a batch, which differ in what is
    masked (CR-CTC, arXiv:2410.05101): the loss l is the mean of both, plus

        c / (2 tokens) * sum over frames of KL(b || a) + KL(a || b),

    in which the first distribution of each KL divergence has no gradient. The pass has twice as
    many rows, so half as many steps or seconds of a batch take as long.

    With an intermediate layer, the loss is (1 - w) l + w m, in which m is the loss of the scores of
    that layer, through the norm and the weights of the last one (Lee & Watanabe 2021,
    arXiv:2102.03216). An evaluation computes neither.

    Args:
        tokenizer: its first token is the blank.
        decode: factory of the decoder.
        vocab_size: number of tokens of the tokenizer; 0 for characters, of which fast speech has
            more than frames of 40 ms.
        subwords: how the tokens are learned: by byte-pair encoding, or as a unigram model.
        consistency: weight c, 0 for one view; the paper has 0.2, and 2.5 times as much masking of
            time as without it. None for 0.2 with less than two hours of training speech, where no
            option of masks is set (`loader.time_masks` and the next five), otherwise for 0.
        intermediate_layer: number, from 1, of an earlier layer that is trained too; 0 for none. The
            paper has the middle one.
        intermediate_weight: weight w of its loss; the paper has 0.3.
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
    default_model: ClassVar[str] = "conformer_small"
    special_tokens: ClassVar[tuple[str, ...]] = ("<blank>",)

    def __init__(
        self,
        tokenizer: Tokenizer,
        decode: Callable[..., ScoresDecoder] | None = None,
        *,
        vocab_size: int = 96,
        subwords: Subwords = "bpe",
        consistency: float | None = None,
        intermediate_layer: int = 0,
        intermediate_weight: float = 0.3,
    ):
        if consistency is not None and consistency < 0:
            raise ValueError(f"consistency={consistency} must be at least 0")
        if intermediate_layer < 0:
            raise ValueError(f"intermediate_layer={intermediate_layer} must be at least 0")
        if not 0 <= intermediate_weight <= 1:
            raise ValueError(f"intermediate_weight={intermediate_weight} must be from 0 to 1")
        super().__init__(tokenizer, decode)
        self.vocab_size = vocab_size
        self.subwords = subwords
        self.consistency = consistency
        self.intermediate_layer = intermediate_layer
        self.intermediate_weight = intermediate_weight

    def compares_views(self, regularizes: bool) -> bool:
        return regularizes if self.consistency is None else self.consistency > 0

    def count(self, batch: Batch) -> int:
        """Counts the target tokens."""
        return int(batch.target_lengths.sum())

    def reject(self, n_frames: int, text: str) -> str | None:
        """Rejects texts that need more frames: one per token, and one between equal neighbours."""
        # CTC emits a blank between equal neighbours
        ids = self.tokenizer.encode(text).ids
        needed = len(ids) + sum(a == b for a, b in pairwise(ids))
        if n_frames >= needed:
            return None
        return f"has {n_frames} frames and its text needs {needed}, more than CTC can emit"

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        inputs = batch.inputs
        lengths = batch.lengths
        spans = batch.spans
        consistency = DEFAULT_CONSISTENCY if self.consistency is None else self.consistency
        other_spans = batch.other_spans if consistency else None
        if spans is not None and other_spans is not None:
            # rows of the first view, then those of the second
            inputs = inputs.repeat(2, 1)
            lengths = lengths.repeat(2)
            spans = torch.cat([spans, other_spans])
        (last, *earlier), n_frames = self.log_probs(model, inputs, lengths, spans)
        loss = self.mean_loss(last, n_frames, batch)
        if other_spans is not None:
            tokens = batch.target_lengths.sum().clamp(min=1)
            loss = loss + consistency * divergence_of_views(last, n_frames) / (2 * tokens)
        for log_probs in earlier:
            intermediate = self.mean_loss(log_probs, n_frames, batch)
            loss = (1 - self.intermediate_weight) * loss + self.intermediate_weight * intermediate
        return loss

    def log_probs(
        self,
        model: nn.Module,
        inputs: Float[Tensor, "rows n"],
        lengths: Int[Tensor, " rows"],
        spans: Float[Tensor, "rows m 4"] | None,
    ) -> tuple[Sequence[Float[Tensor, "rows t v"]], Int[Tensor, " rows"]]:
        """Returns log probabilities of the last layer, then of an earlier one, and the frames."""
        # in fp32 also under autocast
        if not self.intermediate_layer:
            scores, n_frames = model(inputs, lengths, spans)
            return [scores.float().log_softmax(-1)], n_frames
        # one pass, whose rows are those of the last layer, then those of the earlier one
        scores, n_frames = model(inputs, lengths, spans, scored_layer=self.intermediate_layer)
        return scores.float().log_softmax(-1).chunk(2), n_frames[: len(inputs)]

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
