"""Local and myelinated attention with a working memory of all layers (author of seed.md)."""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from famx.attention.adaptive_span import AdaptiveSpanAttention
from famx.attention.base import Block
from famx.attention.myelinated import MyelinatedAttention
from famx.nn.state import DecodeState
from famx.registry import register


@register
class WormAttention(Block):
    """`W [near(z); axon(z)]` with `z = x + W m`, m a working memory of all layers of the model.

    Each layer updates `m <- g m + (1-g) pool(x)` with `g = sigmoid(W pool(x))` before it reads m.
    The first of the model's `worm` layers starts from a learned m.

    `near` is `adaptive_span` (local), `axon` is `myelinated` (global). With a memory, the block is
    `axon` alone, which attends to the memory, and `pool` averages the memory. If causal, `pool` is
    a running mean and each position has its own m; otherwise it is a mean over the sample, which
    has one m.

    Args:
        n_layers: inner layers of the axon, at least 2.
        threshold: importance above which a position is a node of the axon, in [0, 1).
        max_span: longest span of the local part in positions, at least 1.
        ramp: positions over which a key's weight falls from 1 to 0 beyond the span, at least 1.
        cost: penalty for visiting every node, in units of the loss.
        expansion: width of the axon's MLP, in units of d_model.
        projects_queries: whether the axon's queries have weights of their own.
    """

    connects_layers: ClassVar[bool] = True

    def __init__(
        self,
        *,
        n_layers: int = 2,
        threshold: float = 0.1,
        max_span: int = 128,
        ramp: int = 32,
        cost: float = 0.01,
        expansion: float = 1.0,
        projects_queries: bool = True,
        **context,
    ):
        super().__init__(**context)
        self.near = AdaptiveSpanAttention(max_span=max_span, ramp=ramp, **context)
        self.axon = MyelinatedAttention(
            n_layers=n_layers,
            threshold=threshold,
            cost=cost,
            expansion=expansion,
            projects_queries=projects_queries,
            **context,
        )
        self.initial_memory: nn.Parameter | None = nn.Parameter(torch.zeros(1, 1, self.d_model))
        self.memory_gate = nn.Linear(self.d_model, 1)
        self.read = nn.Linear(self.d_model, self.d_model)
        self.merge = nn.Linear(2 * self.d_model, self.d_model)

    def drop_start(self) -> None:
        """Removes the learned m; without a message, the block then starts from 0."""
        self.initial_memory = None

    def drop_self_attention(self) -> None:
        """Removes the local part, which does not attend to a memory."""
        del self.near, self.merge

    def forward(self, x, memory=None, mask=None, state=None):
        """See `Block.forward`."""
        # working memory of this layer and the earlier ones
        z = x + self.read(self.update_memory(x, memory, mask, state))

        # local and global attention
        if memory is not None:
            return self.axon(z, memory, mask, state)
        near = self.near(z, None, mask, state)
        axon = self.axon(z, None, mask, state)
        return self.merge(torch.cat((near, axon), dim=-1))

    def update_memory(
        self,
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"] | None,
        mask: Bool[Tensor, "#b #h #t s"] | None,
        state: DecodeState | None,
    ) -> Float[Tensor, "b _ d"]:
        """Returns the updated working memory; the message passes it to the next layer."""
        # the previous layer's memory, moved towards the pooled input
        cache, offset = self.advance(state, x.shape[1])
        pool = self.pool(x, memory, mask, cache)
        message = self.message(state, memory, offset)
        previous = message.get("working", self.initial_memory)
        if previous is None:
            previous = torch.zeros_like(pool)
        gate = self.memory_gate(pool).sigmoid()
        working = pool + gate * (previous - pool)
        if self.observed:
            self.metrics = {"memory_gate": gate.detach().mean()}
        message["working"] = working
        return working
