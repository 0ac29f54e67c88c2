"""Blocks of many layers as one body: near and myelinated parts, joined by a working memory (the author's worm)."""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from famx.attention.adaptive_span import AdaptiveSpanAttention
from famx.attention.base import Block
from famx.attention.myelinated import MyelinatedAttention
from famx.registry import register


@register
class WormAttention(Block):
    """`W [near(z); axon(z)]` with `z = x + W m`, where the working memory m runs through all layers of the model.

    `m <- g m + (1-g) pool(x)` with `g = sigmoid(W pool(x))`, in each layer, before it is read.

    `near` is `adaptive_span`, `axon` is `myelinated`: without a memory the global part, with one the cross part, which
    then attends alone, and the pool is of that memory. Causal, `pool` is a running mean and every position has its own
    m; else a mean over the sample, which has one. In the first layer m is learned.

    Args:
        n_layers: inner layers of the axon, at least 2.
        threshold: importance above which a position is a node of the axon, in [0, 1).
        max_span: positions that a span of the near part may reach, at least 1.
        ramp: positions over which a key's weight falls from 1 to 0 beyond the span, at least 1.
        cost: penalty for visiting every node, in units of the loss.
        expansion: width of the axon's MLP, in units of d_model.
    """

    connects_layers: ClassVar[bool] = True

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        rotary: nn.Module,
        causal: bool = False,
        *,
        n_layers: int = 2,
        threshold: float = 0.1,
        max_span: int = 128,
        ramp: int = 32,
        cost: float = 0.01,
        expansion: float = 1.0,
    ):
        super().__init__(d_model, n_heads, rotary, causal)
        context = (d_model, n_heads, rotary, causal)
        self.near = AdaptiveSpanAttention(*context, max_span=max_span, ramp=ramp)
        axon = {"n_layers": n_layers, "threshold": threshold, "cost": cost, "expansion": expansion}
        self.axon = MyelinatedAttention(*context, **axon)
        self.first = nn.Parameter(torch.zeros(1, 1, d_model))
        self.keep, self.read = nn.Linear(d_model, 1), nn.Linear(d_model, d_model)
        self.merge = nn.Linear(2 * d_model, d_model)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"] | None = None,
        mask: Bool[Tensor, "#b #h #t s"] | None = None,
        state: dict | None = None,
    ) -> Float[Tensor, "b t d"]:
        """See `Attention.forward`."""
        z = x + self.read(self.working(x, memory, mask, state))
        if memory is not None:
            return self.axon(z, memory, mask, state)
        return self.merge(
            torch.cat((self.near(z, None, mask, state), self.axon(z, None, mask, state)), dim=-1)
        )

    def working(
        self,
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"] | None,
        mask: Bool[Tensor, "#b #h #t s"] | None,
        state: dict | None,
    ) -> Float[Tensor, "b _ d"]:
        """The working memory, with what this layer adds to it; the next layer finds it in the state."""
        cache, offset = self.cache(state, x.shape[1])
        pool = self.pool(x, memory, mask, cache)
        shared = self.shared(state, memory, offset)
        before = shared.get("working", self.first)
        kept = self.keep(pool).sigmoid()
        working = pool + kept * (before - pool)
        if self.observed:
            self.metrics = {"kept": kept.detach().mean()}
        shared["working"] = working
        return working
