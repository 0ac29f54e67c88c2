"""Scaled dot-product attention, the baseline (Vaswani et al. 2017, arXiv:1706.03762)."""

from jaxtyping import Bool, Float
from torch import Tensor

from famx.attention.base import Attention, attend
from famx.registry import register


@register
class MultiheadAttention(Attention):
    """`out(softmax(R q (R k)^T / sqrt(head_dim)) v)`."""

    def mix(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b h s k"],
        v: Float[Tensor, "b h s k"],
        mask: Bool[Tensor, "#b #h #t s"] | None,
        causal: bool,
    ) -> Float[Tensor, "b h t k"]:
        return attend(q, k, v, mask, causal)
