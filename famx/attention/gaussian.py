"""Queries choose by distance instead of by product: a Gaussian around each query (after arXiv:2006.04710)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from famx.attention.base import Attention, attend
from famx.registry import register


@register
class GaussianAttention(Attention):
    """`out(softmax(-|q - k|^2 / (2 sqrt(head_dim))) v)`, `q` and `k` rotated by their positions.

    Since `-|q - k|^2 / 2 = q k - |k|^2 / 2 - |q|^2 / 2`, whose last term a softmax ignores, it is the usual attention
    with one more channel: 1 for queries, `-|k|^2 / 2` for keys.
    """

    def mix(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b h s k"],
        v: Float[Tensor, "b h s k"],
        mask: Bool[Tensor, "#b #h #t s"] | None,
        causal: bool,
    ) -> Float[Tensor, "b h t k"]:
        head_dim = q.shape[-1]
        q = pad(q, (0, 1), value=1.0) * ((head_dim + 1) / head_dim) ** 0.5
        k = torch.cat((k, k.square().sum(-1, keepdim=True) / -2), dim=-1)
        return attend(q, k, pad(v, (0, 1)), mask, causal)[..., :-1]
