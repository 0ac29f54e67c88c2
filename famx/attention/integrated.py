"""Near attention of a learned and refined span beside attention to all, merged (seed.md: IntegratedAttention)."""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from famx.attention._q_learning import Refiner
from famx.attention.adaptive_span import AdaptiveSpanAttention
from famx.attention.base import Block
from famx.attention.content_update import ContentUpdateAttention
from famx.registry import register


class _RefinedSpanAttention(AdaptiveSpanAttention):
    """`adaptive_span` whose `span` is a sequence of what predicts the logits, and a refiner."""

    def shares(
        self, x: Float[Tensor, "b t d"], real: Float[Tensor, "b t 1"] | None
    ) -> Float[Tensor, "b h t"]:
        predict, refine = self.span
        return refine(predict(x), real).sigmoid().mT


@register
class IntegratedAttention(Block):
    """`W [near(x); far(x)]`: `near` is `adaptive_span`, `far` is `content_update`. To a memory, `far` attends alone.

    The spans are `max_span * sigmoid(W x + shift)`; the shift is chosen by a refiner, step by step, from how the loss
    falls and from what spans cost.

    Args:
        max_span: positions that a span may reach, at least 1.
        ramp: positions over which a key's weight falls from 1 to 0 beyond the span, at least 1.
        update_threshold: of the need for new keys and values, in [0, 1).
        alpha, gamma, epsilon: learning rate, weight of the future and share of exploring of the refiner.
        cost: what the longest spans cost, in the loss and in the refiner's reward, at least 0.
    """

    connects_layers: ClassVar[bool] = True

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        rotary: nn.Module,
        causal: bool = False,
        *,
        max_span: int = 128,
        ramp: int = 32,
        update_threshold: float = 0.5,
        alpha: float = 0.1,
        gamma: float = 0.9,
        epsilon: float = 0.1,
        cost: float = 0.001,
    ):
        super().__init__(d_model, n_heads, rotary, causal)
        context = (d_model, n_heads, rotary, causal)
        self.near = _RefinedSpanAttention(*context, max_span=max_span, ramp=ramp, cost=cost)
        self.near.span = nn.Sequential(self.near.span, Refiner(alpha, gamma, epsilon, cost))
        self.far = ContentUpdateAttention(*context, update_threshold=update_threshold)
        self.merge = nn.Linear(2 * d_model, d_model)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"] | None = None,
        mask: Bool[Tensor, "#b #h #t s"] | None = None,
        state: dict | None = None,
    ) -> Float[Tensor, "b t d"]:
        """See `Attention.forward`."""
        if memory is not None:
            return self.far(x, memory, mask, state)
        return self.merge(
            torch.cat((self.near(x, None, mask, state), self.far(x, None, mask, state)), dim=-1)
        )
