"""One attention minus another: what both see is noise, and cancels (arXiv:2410.05258)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from famx.attention.base import Attention, attend
from famx.registry import register


@register
class DifferentialAttention(Attention):
    """`out((1 - start) RMSNorm((A_1 - lambda A_2) v))`, A_1 and A_2 the softmaxes of a pair of heads.

    Both heads of a pair see the values of both. `lambda = exp(l_1 m_1) - exp(l_2 m_2) + start` is learned.

    Args:
        start: of lambda, about; in [0, 1).
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        rotary: nn.Module,
        causal: bool = False,
        *,
        start: float = 0.8,
    ):
        super().__init__(d_model, n_heads, rotary, causal)
        if n_heads % 2 or not 0 <= start < 1:
            raise ValueError(f"n_heads={n_heads} must be even, start={start} in [0, 1)")
        self.start, head_dim = start, d_model // n_heads
        self.exponents = nn.Parameter(0.1 * torch.randn(2, 2, head_dim))
        self.norm = nn.RMSNorm(2 * head_dim, eps=1e-5)

    def mix(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b h s k"],
        v: Float[Tensor, "b h s k"],
        mask: Bool[Tensor, "#b #h #t s"] | None,
        causal: bool,
    ) -> Float[Tensor, "b h t k"]:
        halves = (half.repeat_interleave(2, dim=1) for half in (v[:, ::2], v[:, 1::2]))
        y = torch.cat([attend(q, k, half, mask, causal) for half in halves], dim=-1)
        one, other = self.exponents.prod(0).sum(-1).exp()
        share = one - other + self.start
        if self.observed:
            self.metrics = {"lambda": share.detach()}
        y = (y[:, ::2] - share * y[:, 1::2]).type_as(self.norm.weight)
        y = ((1 - self.start) * self.norm(y)).type_as(q)
        return y.unflatten(-1, (2, -1)).transpose(2, 3).flatten(1, 2)
