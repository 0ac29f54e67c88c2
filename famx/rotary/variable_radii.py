"""RoPE that also learns how much each pair of channels counts: a turn times a radius (after seed.md's author)."""

from math import expm1, log
from typing import ClassVar

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from famx.registry import register
from famx.rotary.base import PairRotary, geometric, pairs_of


@register
class VariableRadii(PairRotary):
    """`x_k <- x_k * r_k exp(i * t * theta^(-2k/d))` on pairs of channels, `r = softplus(radius)`, 1 at first.

    An odd last channel passes as it is.

    Args:
        theta: the slowest pair turns once in about `2 pi theta` positions.
    """

    exempt: ClassVar[dict[str, str]] = {
        "norm_kept": "the radii weigh the pairs, which is what the part is for"
    }

    def __init__(self, head_dim: int, *, theta: float = 10000.0):
        pairs = pairs_of(head_dim, theta=theta)
        super().__init__(geometric(pairs, theta))
        self.radius = nn.Parameter(torch.full((pairs,), log(expm1(1.0))))

    def table(self, offset: int, x: Float[Tensor, "b h t k"]) -> Complex[Tensor, "t pairs"]:
        table = super().table(offset, x)
        return table * softplus(self.radius.to(table.real.dtype))
