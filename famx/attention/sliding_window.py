"""Each head attends within a window of one of several widths (seed.md; arXiv:2004.05150)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from famx.attention._banded import banded
from famx.attention.base import Attention, attend, distance_metrics
from famx.registry import register


@register
class SlidingWindowAttention(Attention):
    """`out(softmax(R q (R k)^T / sqrt(head_dim)) v)` over the keys with `|i - j| < window`.

    It takes time O(t * window). Attention to a memory, which has no distance from the queries, is
    plain attention.

    Args:
        windows: widths in positions, each at least 1; each is used by an equal share of the heads.
    """

    def __init__(self, *, windows: tuple[int, ...] = (32, 128), **context):
        super().__init__(**context)
        if not windows or self.n_heads % len(windows) or min(windows) < 1:
            raise ValueError(
                f"windows={windows} must be at least 1, and their number must divide "
                f"n_heads={self.n_heads}"
            )
        self.windows = tuple(windows)

    def mix(self, q, k, v, mask, causal):
        if self.observed:
            self.metrics = self.distances(q, k, mask, causal)
        return self.mix_windows(q, k, v, mask, causal)

    def mix_memory(self, q, k, v, mask):
        return attend(q, k, v, mask, causal=False)

    def mix_windows(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b h s k"],
        v: Float[Tensor, "b h s v"],
        mask: Bool[Tensor, "#b #h #t s"] | None,
        causal: bool,
    ) -> Float[Tensor, "b h t v"]:
        """Mixes each group of heads within its window."""
        groups = len(self.windows)
        if groups == 1:
            return banded(q, k, v, self.windows[0], mask, causal)
        # a mask may differ between heads
        masks = [mask] * groups
        if mask is not None and mask.shape[1] > 1:
            masks = list(mask.chunk(groups, dim=1))
        queries = q.chunk(groups, dim=1)
        keys = k.chunk(groups, dim=1)
        values = v.chunk(groups, dim=1)
        mixed = []
        for group in zip(queries, keys, values, self.windows, masks, strict=True):
            mixed.append(banded(*group, causal))
        return torch.cat(mixed, dim=1)

    def distances(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b h s k"],
        mask: Bool[Tensor, "#b #h #t s"] | None,
        causal: bool,
    ) -> dict[str, Tensor]:
        """Returns metrics of how far each head attends in the last sample."""
        last_q = q[-1:].float()
        last_k = k[-1:].float()
        last_mask = None if mask is None else mask[-1:]

        def mix_last_sample(values: Float[Tensor, "s 3"]) -> Float[Tensor, "h t 3"]:
            values_by_head = values.expand(1, self.n_heads, -1, -1)
            return self.mix_windows(last_q, last_k, values_by_head, last_mask, causal)[0]

        return distance_metrics(mix_last_sample, mask, q.shape[-2], k.shape[-2], q.device)
