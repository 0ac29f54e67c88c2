"""RoPE with a learned radius that scales each pair of channels (after the author of seed.md)."""

from math import expm1, log
from typing import ClassVar

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from famx.registry import register
from famx.rotary.base import PairRotary, count_pairs, geometric_frequencies


@register
class VariableRadii(PairRotary):
    """`x_k <- x_k * r_k exp(i * t * theta^(-2k/d))`, `r = softplus(radius)`, 1 at first.

    k counts the pairs of neighbouring channels. An odd last channel passes unchanged.

    Args:
        theta: the slowest pair makes a full turn in about `2 pi theta` positions.
    """

    exempt: ClassVar[dict[str, str]] = {"norm_unchanged": "the learned radii scale the pairs"}

    def __init__(self, head_dim: int, *, theta: float = 10000.0):
        pairs = count_pairs(head_dim, theta=theta)
        super().__init__(geometric_frequencies(pairs, theta))
        # softplus(log(e - 1)) = 1
        self.radius = nn.Parameter(torch.full((pairs,), log(expm1(1.0))))

    def table(self, offset: int, x: Float[Tensor, "b h t k"]) -> Complex[Tensor, "t pairs"]:
        """See `PairRotary.table`."""
        table = super().table(offset, x)
        return table * softplus(self.radius.to(table.real.dtype))
