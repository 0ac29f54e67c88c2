"""The difference of two attention maps, in which common noise cancels (arXiv:2410.05258)."""

import torch
from torch import nn

from famx.attention.base import Attention, attend
from famx.registry import register


@register
class DifferentialAttention(Attention):
    """`out((1 - start) RMSNorm((A_1 - lambda A_2) v))`, A_1 and A_2 the softmaxes of two heads.

    Both heads of a pair mix the values of both. `lambda = exp(l_1 m_1) - exp(l_2 m_2) + start`,
    with learned vectors l and m.

    Args:
        start: approximate initial lambda, in [0, 1).
    """

    def __init__(self, *, start: float = 0.8, **context):
        super().__init__(**context)
        if self.n_heads % 2 or not 0 <= start < 1:
            raise ValueError(f"n_heads={self.n_heads} must be even, start={start} in [0, 1)")
        self.start = start
        head_dim = self.d_model // self.n_heads
        self.exponents = nn.Parameter(0.1 * torch.randn(2, 2, head_dim))
        self.norm = nn.RMSNorm(2 * head_dim, eps=1e-5)

    def mix(self, q, k, v, mask, causal):
        # every head mixes the values of both heads of its pair
        mixed = []
        for values in (v[:, ::2], v[:, 1::2]):
            mixed.append(attend(q, k, values.repeat_interleave(2, dim=1), mask, causal))
        y = torch.cat(mixed, dim=-1)

        # lambda, then the difference of the two maps of each pair
        first, second = self.exponents.prod(0).sum(-1).exp()
        coefficient = first - second + self.start
        if self.observed:
            self.metrics = {"lambda": coefficient.detach()}
        y = (y[:, ::2] - coefficient * y[:, 1::2]).type_as(self.norm.weight)
        y = ((1 - self.start) * self.norm(y)).type_as(q)

        # back from pairs to heads
        return y.unflatten(-1, (2, -1)).transpose(2, 3).flatten(1, 2)
