"""Scaled dot-product attention, the baseline (Vaswani et al. 2017, arXiv:1706.03762)."""

from famx.attention.base import Attention, attend
from famx.registry import register


@register
class MultiheadAttention(Attention):
    """`out(softmax(R q (R k)^T / sqrt(head_dim)) v)`."""

    def mix(self, q, k, v, mask, causal):
        return attend(q, k, v, mask, causal)
