"""Several query heads share one head of keys and values, so that a cache is smaller (arXiv:2305.13245)."""

from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from famx.attention.base import Attention, attend
from famx.registry import register


@register
class GroupedQueryAttention(Attention):
    """`out(softmax(R q_h (R k_g)^T / sqrt(head_dim)) v_g)` with `g = h // (n_heads / key_heads)`.

    Args:
        key_heads: heads of keys and values, a divisor of `n_heads`; 1 is multi-query attention (arXiv:1911.02150).
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        rotary: nn.Module,
        causal: bool = False,
        *,
        key_heads: int = 2,
    ):
        super().__init__(d_model, n_heads, rotary, causal)
        if key_heads < 1 or n_heads % key_heads:
            raise ValueError(f"key_heads={key_heads} does not divide n_heads={n_heads}")
        self.key_heads = key_heads
        self.key_value = nn.Linear(d_model, 2 * key_heads * d_model // n_heads)

    def keys_values(self, x: Float[Tensor, "b s d"], offset: int = 0) -> dict[str, Tensor]:
        k, v = rearrange(self.key_value(x), "b s (two g k) -> two b g s k", two=2, g=self.key_heads)
        return {"key": self.rotary(k, offset), "value": v}

    def mix(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b g s k"],
        v: Float[Tensor, "b g s k"],
        mask: Bool[Tensor, "#b #h #t s"] | None,
        causal: bool,
    ) -> Float[Tensor, "b h t k"]:
        k, v = (
            repeat(x, "b g s k -> b (g n) s k", n=self.n_heads // self.key_heads) for x in (k, v)
        )
        return attend(q, k, v, mask, causal)
