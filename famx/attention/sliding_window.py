"""Each head attends to its neighbourhood, of one of several widths (seed.md: slide_win; arXiv:2004.05150)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from famx.attention._banded import banded
from famx.attention.base import Attention, attend, distances
from famx.registry import register


@register
class SlidingWindowAttention(Attention):
    """`out(softmax(R q (R k)^T / sqrt(head_dim)) v)` over the keys with `|i - j| < window`, in time O(t * window).

    A memory has no distance from the queries and is seen whole.

    Args:
        windows: in positions, at least 1; the heads are dealt to them in equal groups.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        rotary: nn.Module,
        causal: bool = False,
        *,
        windows: tuple[int, ...] = (32, 128),
    ):
        super().__init__(d_model, n_heads, rotary, causal)
        if not windows or n_heads % len(windows) or min(windows) < 1:
            raise ValueError(
                f"windows={windows} must be at least 1 and share n_heads={n_heads} in equal groups"
            )
        self.windows = tuple(windows)

    def mix(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b h s k"],
        v: Float[Tensor, "b h s k"],
        mask: Bool[Tensor, "#b #h #t s"] | None,
        causal: bool,
    ) -> Float[Tensor, "b h t k"]:
        if self.observed:
            last = q[-1:].float(), k[-1:].float()
            hidden = mask if mask is None else mask[-1:]

            def mixed(places: Float[Tensor, "s 3"]) -> Float[Tensor, "h t 3"]:
                return self.bands(*last, places.expand(1, self.n_heads, -1, -1), hidden, causal)[0]

            self.metrics = distances(mixed, mask, q.shape[-2], k.shape[-2], q.device)
        return self.bands(q, k, v, mask, causal)

    def bands(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b h s k"],
        v: Float[Tensor, "b h s v"],
        mask: Bool[Tensor, "#b #h #t s"] | None,
        causal: bool,
    ) -> Float[Tensor, "b h t v"]:
        """Each group of heads within its window."""
        scales = len(self.windows)
        if scales == 1:
            return banded(q, k, v, *self.windows, mask, causal)
        masks = [mask] * scales if mask is None or mask.shape[1] == 1 else mask.chunk(scales, dim=1)
        groups = zip(*(x.chunk(scales, dim=1) for x in (q, k, v)), self.windows, masks, strict=True)
        return torch.cat([banded(*group, causal) for group in groups], dim=1)

    def mix_memory(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b h s k"],
        v: Float[Tensor, "b h s k"],
        mask: Bool[Tensor, "#b #h #t s"] | None,
    ) -> Float[Tensor, "b h t k"]:
        return attend(q, k, v, mask, causal=False)
