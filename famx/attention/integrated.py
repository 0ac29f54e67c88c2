"""Local attention with refined spans, merged with full attention (seed.md: IntegratedAttention)."""

from typing import ClassVar

import torch
from torch import nn

from famx.attention._q_learning import Refiner
from famx.attention.adaptive_span import AdaptiveSpanAttention
from famx.attention.base import Block
from famx.attention.content_update import ContentUpdateAttention
from famx.registry import register


class _RefinedSpanAttention(AdaptiveSpanAttention):
    """`adaptive_span` with `z = max_span * sigmoid(W x + shift)`, the shift from a refiner."""

    def __init__(self, *, refiner: Refiner, **context):
        super().__init__(**context)
        self.refiner = refiner

    def span_fraction(self, x, real):
        return self.refiner(self.span(x), real).sigmoid().mT


@register
class IntegratedAttention(Block):
    """`W [near(x); far(x)]`, where `near` is `adaptive_span` and `far` is `content_update`.

    Only `far` attends to a memory. The spans are `max_span * sigmoid(W x + shift)`. A refiner
    selects the shift of each training step by Q-learning; its reward is the decrease of the loss
    minus the cost of the spans.

    Args:
        max_span: longest span in positions, at least 1.
        ramp: positions over which a key's weight falls from 1 to 0 beyond the span, at least 1.
        update_threshold: probability above which keys or values are updated, in [0, 1).
        alpha: learning rate of the refiner, in (0, 1].
        gamma: weight of future rewards in the refiner, in [0, 1).
        epsilon: probability of a random action of the refiner, in [0, 1].
        cost: penalty if all spans are longest, in the loss and in the refiner's reward, at least 0.
    """

    connects_layers: ClassVar[bool] = True

    def __init__(
        self,
        *,
        max_span: int = 128,
        ramp: int = 32,
        update_threshold: float = 0.5,
        alpha: float = 0.1,
        gamma: float = 0.9,
        epsilon: float = 0.1,
        cost: float = 0.001,
        **context,
    ):
        super().__init__(**context)
        refiner = Refiner(alpha, gamma, epsilon, cost)
        span = {"max_span": max_span, "ramp": ramp, "cost": cost}
        self.near = _RefinedSpanAttention(refiner=refiner, **span, **context)
        self.far = ContentUpdateAttention(update_threshold=update_threshold, **context)
        self.merge = nn.Linear(2 * self.d_model, self.d_model)

    def drop_self_attention(self) -> None:
        """Removes the local part, which does not attend to a memory."""
        del self.near, self.merge

    def forward(self, x, memory=None, mask=None, state=None):
        """See `Block.forward`."""
        if memory is not None:
            return self.far(x, memory, mask, state)
        near = self.near(x, None, mask, state)
        far = self.far(x, None, mask, state)
        return self.merge(torch.cat((near, far), dim=-1))
