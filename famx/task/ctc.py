"""Connectionist temporal classification (Graves et al. 2006): speech to text, frame by frame, decoded greedily."""

from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import ctc_loss

from famx.registry import register
from famx.task._wer import errors


@register
class CTC:
    """-log p(text | signal) summed over all alignments, per token; id 0 of the tokenizer is the blank.

    Args:
        units: tokens that the tokenizer is built with; 0 for characters, which fast speech has too many of for
            frames of 40 ms.
    """

    causal: ClassVar[bool] = False
    unit: ClassVar[str] = "seconds"
    metric: ClassVar[str] = "wer"
    usual: ClassVar[dict[str, str]] = {"frontend": "log_mel", "data": "spoken"}

    def __init__(self, tokenizer, *, units: int = 96):
        self.tokenizer, self.units = tokenizer, units

    def count(self, batch) -> int:
        """Units that the loss is the mean over: tokens to emit."""
        return int(batch.target_lengths.sum())

    def loss(self, model, batch) -> Float[Tensor, ""]:
        return self._loss(*model(batch.inputs, batch.lengths, batch.spans), batch)

    def judge(self, model, batch) -> tuple[Float[Tensor, ""], list[str]]:
        """`loss` and `decode` of one pass through the model."""
        scores, lengths = model(batch.inputs, batch.lengths, batch.spans)
        return self._loss(scores, lengths, batch), self._texts(scores, lengths)

    def frames_needed(self, text: str) -> int:
        """Frames without which the text cannot be emitted: one a token, one more between equal neighbours."""
        ids = self.tokenizer.encode(text).ids
        return len(ids) + sum(a == b for a, b in pairwise(ids))

    @torch.inference_mode()
    def decode(self, model, batch) -> list[str]:
        """The likeliest symbol of every frame, repeats merged, blanks dropped."""
        return self._texts(*model(batch.inputs, batch.lengths))

    def score(self, references: list[str], hypotheses: list[str]) -> dict:
        """Word and character error rates by name, each an `Errors`."""
        return {
            "wer": errors(references, hypotheses, "word"),
            "cer": errors(references, hypotheses, "char"),
        }

    def _loss(
        self, scores: Float[Tensor, "b t c"], lengths: Int[Tensor, " b"], batch
    ) -> Float[Tensor, ""]:
        log_probs = scores.float().log_softmax(-1).transpose(0, 1)
        total = ctc_loss(
            log_probs,
            batch.targets,
            lengths,
            batch.target_lengths,
            reduction="sum",
            zero_infinity=True,
        )
        return total / self.count(batch)

    def _texts(self, scores: Float[Tensor, "b t c"], lengths: Int[Tensor, " b"]) -> list[str]:
        best = scores.argmax(-1)
        best = best.masked_fill(
            torch.arange(best.shape[1], device=best.device) >= lengths[:, None], 0
        )
        fresh = torch.ones_like(best, dtype=torch.bool)
        fresh[:, 1:] = best[:, 1:] != best[:, :-1]
        rows = best.masked_fill(~fresh, 0).tolist()
        return [self.tokenizer.decode([i for i in row if i]) for row in rows]
