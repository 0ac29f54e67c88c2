"""Scores are squared distances: a Gaussian around each query (after arXiv:2006.04710)."""

import torch
from torch.nn.functional import pad

from famx.attention.base import Attention, attend
from famx.registry import register


@register
class GaussianAttention(Attention):
    """`out(softmax(-|q - k|^2 / (2 sqrt(head_dim))) v)`, `q` and `k` rotated by their positions.

    `-|q - k|^2 / 2 = q k - |k|^2 / 2 - |q|^2 / 2`, and a softmax ignores the last term. So this is
    dot-product attention with one more channel: 1 for queries, `-|k|^2 / 2` for keys.
    """

    def mix(self, q, k, v, mask, causal):
        head_dim = q.shape[-1]
        # attend divides by sqrt(head_dim + 1)
        q = pad(q, (0, 1), value=1.0) * ((head_dim + 1) / head_dim) ** 0.5
        k = torch.cat((k, k.square().sum(-1, keepdim=True) / -2), dim=-1)
        return attend(q, k, pad(v, (0, 1)), mask, causal)[..., :-1]
