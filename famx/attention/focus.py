"""Iterative attention: refines the query by its output until it converges (author of seed.md)."""

import torch
from jaxtyping import Float
from torch import Tensor

from famx.attention.base import Attention, attend
from famx.registry import register


@register
class FocusAttention(Attention):
    """`out(y_last)` with `y_0 = attend(q)`, then `q <- q + y_i`, `y_(i+1) = attend(q)`.

    Keys and values stay the same. A query with `|y_(i+1) - y_i| <= threshold |y_i|` has converged:
    the query and its y do not change any more.

    Args:
        steps: number of refinements, at least 1.
        threshold: relative change at which a query has converged, at least 0.
    """

    def __init__(self, *, steps: int = 2, threshold: float = 0.01, **context):
        super().__init__(**context)
        if steps < 1 or threshold < 0:
            raise ValueError(f"steps={steps} must be at least 1, threshold={threshold} at least 0")
        self.steps = steps
        self.threshold = threshold

    def mix(self, q, k, v, mask, causal):
        y = attend(q, k, v, mask, causal)
        moving = torch.ones_like(y[..., :1], dtype=torch.bool)
        moving_by_step = []
        for _ in range(self.steps):
            # refine the queries that have not converged
            q = torch.where(moving, q + y, q)
            refined = attend(q, k, v, mask, causal)
            change = (refined - y).norm(dim=-1, keepdim=True)
            changed = change > self.threshold * y.norm(dim=-1, keepdim=True)
            y = torch.where(moving, refined, y)
            moving = moving & changed
            moving_by_step.append(moving)
        if self.observed:
            share = torch.cat(moving_by_step, dim=-1).float().mean((0, 1, 2))
            flops = self.flops_per_position(share, k.shape[-2])
            self.metrics = {"moving": share, "flops": flops}
        return y

    def flops_per_position(self, moving: Float[Tensor, " steps"], keys: int) -> Float[Tensor, ""]:
        """Returns the FLOPs of one position if converged queries are not computed again.

        It counts four projections, and the scores and mixing of each time that a query attends:
        initially, in the first step, and in each later step for the share of queries that still
        change.

        Args:
            moving: share of the queries that still change after each step.
        """
        times = 2 + moving[:-1].sum()
        return 4 * self.d_model * (2 * self.d_model + times * keys)
