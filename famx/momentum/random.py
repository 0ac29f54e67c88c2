"""A momentum drawn at random for every tensor, again and again: the control that moves as much and hears nothing."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from famx.momentum.base import Momentum
from famx.notation import TensorInfo
from famx.registry import register


@register
class Random(Momentum):
    """a ~ uniform from low to high, a function of the seed, the tensor and the step alone.

    Args:
        low: least coefficient, in [0, 1).
        high: largest, in [low, 1).
        every: steps that a draw lasts.
        seed: of the draws.
    """

    capturable = False

    def __init__(
        self,
        tensors: Sequence[TensorInfo],
        *,
        low: float = 0.85,
        high: float = 0.98,
        every: int = 8,
        seed: int = 0,
    ):
        super().__init__(tensors)
        if not 0 <= low <= high < 1 or every < 1:
            raise ValueError(
                f"low={low} and high={high} must rise within [0, 1), and every={every} be at least 1"
            )
        self.low, self.high, self.every, self.seed = low, high, every, seed

    def forward(self, gradients: Sequence[Tensor], step: int | Tensor) -> Float[Tensor, " tensors"]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step // self.every)
        drawn = torch.rand(len(self.tensors), generator=generator)
        return (self.low + (self.high - self.low) * drawn).to(self.base.device, non_blocking=True)
