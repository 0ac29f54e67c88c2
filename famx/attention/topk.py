"""Each query attends to the few keys with the highest scores (arXiv:2106.06899)."""

import torch

from famx.attention.base import Attention, attend
from famx.nn.masks import visible
from famx.registry import register


@register
class TopKAttention(Attention):
    """`out(softmax(a) v)` over the `keys` largest entries of each row of `a`.

    `a = R q (R k)^T / sqrt(head_dim)`. Ties for the last of these entries are broken arbitrarily.

    Args:
        keys: number of keys that a query attends to, at least 1.
    """

    def __init__(self, *, keys: int = 16, **context):
        super().__init__(**context)
        if keys < 1:
            raise ValueError(f"keys={keys} must be at least 1")
        self.keys = keys

    def mix(self, q, k, v, mask, causal):
        mask = visible(mask, q.shape[-2], k.shape[-2], causal, q.device)
        if self.keys < k.shape[-2]:
            # hides all other keys; the selection itself has no gradient
            with torch.no_grad():
                scores = q @ k.mT
                if mask is not None:
                    scores = scores.masked_fill(~mask, -torch.inf)
                selected = torch.zeros_like(scores, dtype=torch.bool)
                selected.scatter_(-1, scores.topk(self.keys).indices, True)
                mask = selected if mask is None else selected & mask
        return attend(q, k, v, mask, causal=False)
