"""A random momentum per tensor, resampled every few steps: a control that ignores gradients."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from famx.momentum.base import MomentumRule
from famx.notation import TensorInfo
from famx.registry import register
from famx.seeding import torch_generator


@register
class Random(MomentumRule):
    """a ~ uniform from low to high, a function of the seed, the tensor and the step alone.

    Args:
        low: smallest coefficient, in [0, 1).
        high: largest coefficient, in [low, 1).
        every: steps between two samples.
        seed: seed of the samples.
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
        if not 0 <= low <= high < 1:
            raise ValueError(f"low={low} and high={high} must satisfy 0 <= low <= high < 1")
        if every < 1:
            raise ValueError(f"every={every} must be at least 1")
        self.low = low
        self.high = high
        self.every = every
        self.seed = seed

    def forward(self, gradients: Sequence[Tensor], step: int | Tensor) -> Float[Tensor, " tensors"]:
        """See `MomentumRule.forward`."""
        # sampled on the CPU, so that all devices get the same values
        generator = torch_generator(self.seed, int(step) // self.every)
        uniform = torch.rand(len(self.tensors), generator=generator)
        coefficients = self.low + (self.high - self.low) * uniform
        return coefficients.to(self.base.device, non_blocking=True)
