"""Several query heads share one head of keys and values, for a smaller cache (arXiv:2305.13245)."""

from einops import rearrange, repeat
from torch import nn

from famx.attention.base import Attention, attend
from famx.registry import register


@register
class GroupedQueryAttention(Attention):
    """`out(softmax(R q_h (R k_g)^T / sqrt(head_dim)) v_g)` with `g = h // (n_heads / key_heads)`.

    Args:
        key_heads: heads of keys and values, a divisor of `n_heads`; 1 is multi-query attention
            (arXiv:1911.02150).
    """

    def __init__(self, *, key_heads: int = 2, **context):
        super().__init__(**context)
        if key_heads < 1 or self.n_heads % key_heads:
            raise ValueError(f"key_heads={key_heads} does not divide n_heads={self.n_heads}")
        self.key_heads = key_heads
        self.key_value = nn.Linear(self.d_model, 2 * key_heads * self.d_model // self.n_heads)

    def keys_values(self, x, offset=0):
        k, v = rearrange(self.key_value(x), "b s (two g k) -> two b g s k", two=2, g=self.key_heads)
        return {"key": self.rotary(k, offset), "value": v}

    def mix(self, q, k, v, mask, causal):
        queries_per_key = self.n_heads // self.key_heads
        k = repeat(k, "b g s k -> b (g n) s k", n=queries_per_key)
        v = repeat(v, "b g s k -> b (g n) s k", n=queries_per_key)
        return attend(q, k, v, mask, causal)
