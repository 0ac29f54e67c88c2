"""Looks again, its query moved by what it found, until it finds the same as before (by the author of seed.md)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from famx.attention.base import Attention, attend
from famx.registry import register


@register
class FocusAttention(Attention):
    """`out(y_last)` with `y_0 = attend(q)`, then `q <- q + y_i`, `y_(i+1) = attend(q)`, keys and values the same.

    A query whose `|y_(i+1) - y_i| <= threshold |y_i|` has converged: it and its y stay from there on.

    Args:
        steps: times that a query looks again, at least 1.
        threshold: relative change at which it has converged, at least 0.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        rotary: nn.Module,
        causal: bool = False,
        *,
        steps: int = 2,
        threshold: float = 0.01,
    ):
        super().__init__(d_model, n_heads, rotary, causal)
        if steps < 1 or threshold < 0:
            raise ValueError(f"steps={steps} must be at least 1, threshold={threshold} at least 0")
        self.steps, self.threshold = steps, threshold

    def mix(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b h s k"],
        v: Float[Tensor, "b h s k"],
        mask: Bool[Tensor, "#b #h #t s"] | None,
        causal: bool,
    ) -> Float[Tensor, "b h t k"]:
        y, moved = attend(q, k, v, mask, causal), []
        moving = torch.ones_like(y[..., :1], dtype=torch.bool)
        for _ in range(self.steps):
            q = torch.where(moving, q + y, q)
            found = attend(q, k, v, mask, causal)
            changed = (found - y).norm(dim=-1, keepdim=True) > self.threshold * y.norm(
                dim=-1, keepdim=True
            )
            y, moving = torch.where(moving, found, y), moving & changed
            moved.append(moving)
        if self.observed:
            moving, d_model = torch.cat(moved, dim=-1).float().mean((0, 1, 2)), self.out.in_features
            looks = 2 + moving[:-1].sum()
            self.metrics = {
                "moving": moving,
                "flops": 4 * d_model * (2 * d_model + looks * k.shape[-2]),
            }
        return y
