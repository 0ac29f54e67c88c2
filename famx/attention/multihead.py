"""Scaled dot-product attention, the baseline (Vaswani et al. 2017, arXiv:1706.03762)."""

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from famx.attention.base import Attention, visible
from famx.registry import register


@register
class MultiheadAttention(Attention):
    """`softmax(q k^T / sqrt(head_dim)) v`; a query that may attend nowhere gets zeros."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        t, s = q.shape[-2], k.shape[-2]
        if causal and mask is None and t == s:
            return scaled_dot_product_attention(q, k, v, is_causal=True)
        return scaled_dot_product_attention(q, k, v, visible(mask, t, s, causal, q.device))
