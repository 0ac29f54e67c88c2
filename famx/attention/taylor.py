"""Attention weights by a Taylor polynomial in place of the exponential (after arXiv:1511.05042)."""

import torch

from famx.attention._chunks import autocast_inputs, queries_per_chunk
from famx.attention._taylor_chunks import MixByPolynomial
from famx.attention.base import Attention
from famx.nn.masks import visible
from famx.registry import register


@register
class TaylorAttention(Attention):
    """`out((p(a) / sum p(a)) v)` with `a = R q (R k)^T / sqrt(head_dim)`.

    `p(a) = 1 + a + ... + a^order / order!`. Masked positions are left out of the sum, since a score
    of -inf would have the largest weight.

    Args:
        order: degree of the polynomial; even, since an odd polynomial is negative somewhere.
    """

    def __init__(self, *, order: int = 2, **context):
        super().__init__(**context)
        if order < 2 or order % 2:
            raise ValueError(
                f"order={order} must be even and at least 2, else some weights are negative"
            )
        self.order = order

    def mix(self, q, k, v, mask, causal):
        chunk = queries_per_chunk((*q.shape[:3], k.shape[2]), q.element_size())
        if chunk is not None:
            q, k, v = autocast_inputs(q, k, v)
            mask = visible(mask, q.shape[-2], k.shape[-2], causal, q.device)
            return MixByPolynomial.apply(q, k, v, mask, self.order, chunk)
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if not k.shape[-2]:
            return scores @ v
        mask = visible(mask, q.shape[-2], k.shape[-2], causal, q.device)
        if mask is not None:
            scores = scores.masked_fill(~mask, 0)

        # Horner's scheme, each row divided by largest^order, so that no power overflows
        largest = scores.detach().abs().amax(-1, keepdim=True).clamp(min=1)
        weights = torch.ones_like(scores)
        for i in range(self.order, 0, -1):
            weights = largest ** (i - self.order - 1) + scores / (i * largest) * weights
        if mask is not None:
            weights = weights * mask

        # the sum is 0 only if no key is visible
        total = weights.sum(-1, keepdim=True)
        return weights / (total + (total == 0)) @ v
