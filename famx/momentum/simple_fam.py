"""SimpleFAM: more momentum the more of a gradient's spectrum lies in its upper half (seed.md)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from famx.momentum.base import Momentum
from famx.notation import TensorInfo
from famx.registry import register


@register
class SimpleFam(Momentum):
    """min(.98, a + gain·share), share = sum of the upper half of |rfft(first `min_size` entries)| / sum of all.

    Args:
        gain: momentum added if all power were in the upper half.
        start_step: step up to which the base momentum a stays.
        min_size: entries that are measured; tensors with no more than that keep their base.
    """

    def __init__(
        self,
        tensors: Sequence[TensorInfo],
        *,
        gain: float = 0.05,
        start_step: int = 100,
        min_size: int = 1000,
    ):
        super().__init__(tensors)
        self.gain, self.start_step, self.min_size = gain, start_step, min_size
        self.rows = [i for i, info in enumerate(tensors) if info.numel > min_size]
        self.register_buffer("index", torch.tensor(self.rows, dtype=torch.long), persistent=False)

    def forward(self, gradients: Sequence[Tensor], step: int | Tensor) -> Float[Tensor, " tensors"]:
        if (due := step > self.start_step) is False or not self.rows:
            return self.base
        first = torch.stack([gradients[i].reshape(-1)[: self.min_size].float() for i in self.rows])
        magnitude = torch.fft.rfft(first).abs()
        upper = magnitude[:, magnitude.shape[1] // 2 :].sum(1) / (magnitude.sum(1) + 1e-8)
        chosen = (self.base[self.index] + self.gain * upper).clamp_max(0.98)
        if self.observed:
            self.metrics = {
                "upper": upper,
                "fired": (chosen != self.base[self.index]).float().mean(),
            }
        moved = self.base.index_copy(0, self.index, chosen)
        return torch.where(due, moved, self.base) if isinstance(due, Tensor) else moved
