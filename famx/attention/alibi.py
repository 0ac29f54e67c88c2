"""Scores fall with distance at a fixed rate for each head (ALiBi, arXiv:2108.12409)."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from famx.attention.base import Attention, attend
from famx.nn.masks import visible
from famx.registry import register


@register
class AlibiAttention(Attention):
    """`out(softmax(R q (R k)^T / sqrt(head_dim) - slope_h |i - j|) v)`.

    `slope_h = 2^(-8 (h + 1) / n_heads)`. Attention to a memory, which has no distance from the
    queries, is plain attention. `rotary=none` is the published form.
    """

    def mix(self, q, k, v, mask, causal):
        t = q.shape[-2]
        s = k.shape[-2]
        # the queries are the last positions of the key sequence
        query_positions = torch.arange(s - t, s, device=q.device)
        key_positions = torch.arange(s, device=q.device)
        distance = (query_positions[:, None] - key_positions).abs()
        slope = 2 ** (-8 / self.n_heads * torch.arange(1, self.n_heads + 1, device=q.device))
        bias = (-slope[:, None, None] * distance)[None].to(q)
        mask = visible(mask, t, s, causal, q.device)
        if mask is not None:
            bias = bias.masked_fill(~mask, -torch.inf)
        return scaled_dot_product_attention(q, k, v, bias)

    def mix_memory(self, q, k, v, mask):
        return attend(q, k, v, mask, causal=False)
