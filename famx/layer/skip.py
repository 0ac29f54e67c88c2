"""A pre-norm layer that learns when to be skipped (seed.md: decide_jump; straight-through, arXiv:1308.3432)."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from famx.layer.prenorm import PreNormLayer
from famx.nn.hooks import ComputeCost
from famx.registry import register

HIDDEN = 128  # channels of the gate


@register
class SkipLayer(ComputeCost, PreNormLayer):
    """`x <- x + 1[p > 1/2] (prenorm(x) - x)`, `p = sigmoid(MLP(pool(x)))`.

    Causal, `pool` is a running mean and every position decides for itself; else a mean over the sample, which decides
    as one. The gate is hard and has the gradient of p (straight-through). What is skipped is computed and multiplied
    by 0; the metric `compute` tells what would be left. With a memory the mask is the memory's, and nothing tells of
    padding in `x`.

    Args:
        d_model: channels.
        attention, feedforward, norm: each builds one module.
        causal: decide for each position from those before it.
        dropout: on what the two branches add, in [0, 1).
        cost: penalty for never skipping, in units of the loss.
    """

    observed = False

    def __init__(
        self,
        d_model: int,
        attention: Callable[[], nn.Module],
        feedforward: Callable[[], nn.Module],
        norm: Callable[[], nn.Module],
        causal: bool = False,
        *,
        dropout: float = 0.1,
        cost: float = 0.01,
    ):
        super().__init__(attention, feedforward, norm, dropout=dropout)
        self.causal, self.cost = causal, cost
        self.gate = nn.Sequential(nn.Linear(d_model, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        # at first no layer is skipped: one that is learns nothing
        nn.init.constant_(self.gate[-1].bias, 2.0)
        self.metrics: dict[str, Tensor] = {}

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"] | None = None,
        mask: Bool[Tensor, "#b #h #t s"] | None = None,
        state: dict | None = None,
    ) -> Float[Tensor, "b t d"]:
        """See `PreNormLayer.forward`."""
        seen = None if mask is None or memory is not None else mask.any(1)
        p = self.gate(self.pool(x, seen, state)).sigmoid()
        visit = p + ((p > 0.5).to(p) - p).detach()
        self.account(visit.expand(*x.shape[:2], 1), p, seen)
        return x + visit * (super().forward(x, memory, mask, state) - x)

    def pool(
        self, x: Float[Tensor, "b t d"], seen: Bool[Tensor, "#b #t s"] | None, state: dict | None
    ) -> Float[Tensor, "b _ d"]:
        """The mean of what each position sees; where all see the same, of one for all."""
        new = x.shape[1]
        if state is not None and "whole" not in state:
            x = state[self] = torch.cat((state[self], x), 1) if self in state else x
        if self.causal:
            past = torch.ones(1, new, x.shape[1], dtype=torch.bool, device=x.device).tril(
                x.shape[1] - new
            )
            seen = past if seen is None else past & seen
        if seen is None:
            return x.mean(1, keepdim=True)
        shares = seen.to(x)
        return (shares / shares.sum(-1, keepdim=True).clamp(min=1)) @ x

    def account(
        self,
        visit: Float[Tensor, "b t 1"],
        p: Float[Tensor, "b _ 1"],
        seen: Bool[Tensor, "#b #t s"] | None,
    ) -> None:
        """Notes which share of the real positions the layer was computed for."""
        real = (
            torch.ones_like(visit)
            if seen is None
            else seen.any(1)[:, -visit.shape[1] :, None].to(visit)
        )
        compute = (visit * real).sum() / real.expand_as(visit).sum().clamp(min=1)
        self.last_compute = compute if self.training else None
        if self.observed:
            visits = visit[-1].detach().T
            self.metrics = {
                "compute": compute.detach(),
                "probability": p.detach().mean(),
                "over_time/visit": visits,
            }
