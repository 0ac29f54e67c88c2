"""Each query attends to the few keys with the highest scores (arXiv:2106.06899)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from famx.attention._chunks import mask_of_queries, queries_per_chunk, query_chunks
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
            selected = self.select(q, k, mask)
            mask = selected if mask is None else selected.logical_and_(mask)
        return attend(q, k, v, mask, causal=False)

    @torch.no_grad()
    def select(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b h s k"],
        mask: Bool[Tensor, "#b #h #t s"] | None,
    ) -> Bool[Tensor, "b h t s"]:
        """Returns True for the keys with the highest scores; the selection has no gradient."""
        selected = q.new_zeros((*q.shape[:3], k.shape[2]), dtype=torch.bool)
        chunk = queries_per_chunk(selected.shape, q.element_size()) or max(1, q.shape[2])
        for rows in query_chunks(q.shape[2], chunk):
            scores = q[:, :, rows] @ k.mT
            row_mask = mask_of_queries(mask, rows)
            if row_mask is not None:
                scores = scores.masked_fill(~row_mask, -torch.inf)
            selected[:, :, rows].scatter_(-1, scores.topk(self.keys).indices, True)
        return selected
