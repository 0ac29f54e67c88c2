"""Scores fall in proportion to the distance, in each head at its own rate (ALiBi, arXiv:2108.12409)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from famx.attention.base import Attention, attend
from famx.nn.masks import visible
from famx.registry import register


@register
class AlibiAttention(Attention):
    """`out(softmax(R q (R k)^T / sqrt(head_dim) - slope_h |i - j|) v)` with `slope_h = 2^(-8 (h + 1) / n_heads)`.

    A memory has no distance from the queries: there it is plain attention. `rotary=none` is the published form.
    """

    def mix(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b h s k"],
        v: Float[Tensor, "b h s k"],
        mask: Bool[Tensor, "#b #h #t s"] | None,
        causal: bool,
    ) -> Float[Tensor, "b h t k"]:
        (t, s), device = (q.shape[-2], k.shape[-2]), q.device
        distance = (
            torch.arange(s - t, s, device=device)[:, None] - torch.arange(s, device=device)
        ).abs()
        slope = 2 ** (-8 / self.n_heads * torch.arange(1, self.n_heads + 1, device=device))
        bias, seen = (
            (-slope[:, None, None] * distance)[None].to(q),
            visible(mask, t, s, causal, device),
        )
        if seen is not None:
            bias = bias.masked_fill(~seen, -torch.inf)
        return scaled_dot_product_attention(q, k, v, bias)

    def mix_memory(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b h s k"],
        v: Float[Tensor, "b h s k"],
        mask: Bool[Tensor, "#b #h #t s"] | None,
    ) -> Float[Tensor, "b h t k"]:
        return attend(q, k, v, mask, causal=False)
