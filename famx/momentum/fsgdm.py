"""FSGDM: momentum grows with the step, which narrows its low-pass filter (arXiv:2411.19671)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from famx.momentum.base import MomentumRule
from famx.notation import TensorInfo
from famx.registry import register


@register
class Fsgdm(MomentumRule):
    """a = t / (t + mu) for every tensor.

    The paper's update u·m + v·g has v = 1; here the weight of the new gradient is 1 - u.

    Args:
        mu: step at which a is one half; the paper uses .033 times the number of all steps.
    """

    def __init__(self, tensors: Sequence[TensorInfo], *, mu: float = 33.0):
        super().__init__(tensors)
        if mu <= 0:
            raise ValueError(f"mu={mu} must be above 0")
        self.mu = mu

    def forward(self, gradients: Sequence[Tensor], step: int | Tensor) -> Float[Tensor, " tensors"]:
        """See `MomentumRule.forward`."""
        return torch.zeros_like(self.base) + step / (step + self.mu)
