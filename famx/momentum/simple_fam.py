"""SimpleFAM: momentum grows with the share of the spectrum's upper half (seed.md)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from famx.momentum.base import MomentumRule
from famx.notation import TensorInfo
from famx.registry import register


@register
class SimpleFam(MomentumRule):
    """min(.98, a + gain·share), share = sum of the upper half of F / sum of F.

    F = |rfft(first `min_size` entries)|.

    Args:
        gain: momentum added if all power were in the upper half.
        start_step: number of first steps with the base momentum a.
        min_size: number of elements that are measured; tensors with no more elements keep their
            base momentum.
    """

    index: Tensor

    def __init__(
        self,
        tensors: Sequence[TensorInfo],
        *,
        gain: float = 0.05,
        start_step: int = 100,
        min_size: int = 1000,
    ):
        super().__init__(tensors)
        self.gain = gain
        self.start_step = start_step
        self.min_size = min_size
        self.rows = [row for row, info in enumerate(tensors) if info.numel > min_size]
        self.register_buffer("index", torch.tensor(self.rows, dtype=torch.long), persistent=False)

    def forward(self, gradients: Sequence[Tensor], step: int | Tensor) -> Float[Tensor, " tensors"]:
        """See `MomentumRule.forward`."""
        due = step > self.start_step
        if due is False or not self.rows:
            return self.base
        # the share of the upper half of the spectrum
        entries = [gradients[row].reshape(-1)[: self.min_size].float() for row in self.rows]
        magnitude = torch.fft.rfft(torch.stack(entries)).abs()
        upper = magnitude[:, magnitude.shape[1] // 2 :].sum(1) / (magnitude.sum(1) + 1e-8)
        # the coefficients
        base = self.base[self.index]
        raised = (base + self.gain * upper).clamp_max(0.98)
        if self.observed:
            self.metrics = {"upper": upper, "fired": (raised != base).float().mean()}
        coefficients = self.base.index_copy(0, self.index, raised)
        if isinstance(due, Tensor):
            return torch.where(due, coefficients, self.base)
        return coefficients
