"""Each query attends to a fixed number of keys, those of the highest scores (arXiv:2106.06899)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from famx.attention.base import Attention, attend
from famx.nn.masks import visible
from famx.registry import register


@register
class TopKAttention(Attention):
    """`out(softmax(a) v)` over the `keys` largest entries of each row of `a = R q (R k)^T / sqrt(head_dim)`.

    Where equal entries compete for the last places, any of them are taken.

    Args:
        keys: that a query attends to, at least 1.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        rotary: nn.Module,
        causal: bool = False,
        *,
        keys: int = 16,
    ):
        super().__init__(d_model, n_heads, rotary, causal)
        if keys < 1:
            raise ValueError(f"keys={keys} must be at least 1")
        self.keys = keys

    def mix(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b h s k"],
        v: Float[Tensor, "b h s k"],
        mask: Bool[Tensor, "#b #h #t s"] | None,
        causal: bool,
    ) -> Float[Tensor, "b h t k"]:
        seen = visible(mask, q.shape[-2], k.shape[-2], causal, q.device)
        if self.keys < k.shape[-2]:
            with torch.no_grad():
                scores = q @ k.mT
                if seen is not None:
                    scores = scores.masked_fill(~seen, -torch.inf)
                chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(
                    -1, scores.topk(self.keys).indices, True
                )
                seen = chosen if seen is None else chosen & seen
        return attend(q, k, v, seen, causal=False)
