"""Queries choose by the angle to a key, and only by the root of both lengths (after arXiv:2010.04245)."""

from jaxtyping import Bool, Float
from torch import Tensor

from famx.attention.base import Attention, attend
from famx.registry import register


@register
class CosineAttention(Attention):
    """`out(softmax(cos(q, k) sqrt(|q| |k|)) v)`, `q` and `k` rotated by their positions."""

    def mix(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b h s k"],
        v: Float[Tensor, "b h s k"],
        mask: Bool[Tensor, "#b #h #t s"] | None,
        causal: bool,
    ) -> Float[Tensor, "b h t k"]:
        q, k = (x / x.norm(dim=-1, keepdim=True).clamp(min=1e-6).sqrt() for x in (q, k))
        return attend(q * q.shape[-1] ** 0.5, k, v, mask, causal)
