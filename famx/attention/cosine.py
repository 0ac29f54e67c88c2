"""Scores are cosines times the square root of both lengths (after arXiv:2010.04245)."""

from jaxtyping import Float
from torch import Tensor

from famx.attention.base import Attention, attend
from famx.registry import register


@register
class CosineAttention(Attention):
    """`out(softmax(cos(q, k) sqrt(|q| |k|)) v)`, `q` and `k` rotated by their positions."""

    def mix(self, q, k, v, mask, causal):
        q = _divide_by_root_length(q)
        k = _divide_by_root_length(k)
        # cancels the division by sqrt(head_dim) in `attend`
        return attend(q * q.shape[-1] ** 0.5, k, v, mask, causal)


def _divide_by_root_length(x: Float[Tensor, "b h t k"]) -> Float[Tensor, "b h t k"]:
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-6).sqrt()
