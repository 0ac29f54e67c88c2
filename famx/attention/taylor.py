"""The exponential of the softmax replaced by its Taylor polynomial (after arXiv:1511.05042)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from famx.attention.base import Attention
from famx.nn.masks import visible
from famx.registry import register


@register
class TaylorAttention(Attention):
    """`out((p(a) / sum p(a)) v)` with `a = R q (R k)^T / sqrt(head_dim)` and `p(a) = 1 + a + ... + a^order / order!`.

    Hidden places are left out of the sum: a score of -inf would come back from the polynomial as the largest of all.

    Args:
        order: of the polynomial, even: an odd one is negative somewhere.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        rotary: nn.Module,
        causal: bool = False,
        *,
        order: int = 2,
    ):
        super().__init__(d_model, n_heads, rotary, causal)
        if order < 2 or order % 2:
            raise ValueError(
                f"order={order} must be even and at least 2, else some weights are negative"
            )
        self.order = order

    def mix(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b h s k"],
        v: Float[Tensor, "b h s k"],
        mask: Bool[Tensor, "#b #h #t s"] | None,
        causal: bool,
    ) -> Float[Tensor, "b h t k"]:
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if not k.shape[-2]:
            return scores @ v
        seen = visible(mask, q.shape[-2], k.shape[-2], causal, q.device)
        if seen is not None:
            scores = scores.masked_fill(~seen, 0)
        # a row as a whole is divided by largest^order, so that no power overflows
        largest = scores.detach().abs().amax(-1, keepdim=True).clamp(min=1)
        weights = torch.ones_like(scores)
        for i in range(self.order, 0, -1):
            weights = largest ** (i - self.order - 1) + scores / (i * largest) * weights
        if seen is not None:
            weights = weights * seen
        total = weights.sum(-1, keepdim=True)
        return weights / (total + (total == 0)) @ v  # nothing is seen where it is 0
