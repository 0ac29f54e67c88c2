"""Content decides how far each head attends (seed.md; dynamic span, arXiv:1905.07799)."""

import math

from jaxtyping import Float
from torch import Tensor, nn

from famx.attention._banded import banded
from famx.attention._soft_window import attend_soft_window, shortest_and_longest
from famx.attention.base import Attention, attend
from famx.nn.gating import skips_closed
from famx.nn.hooks import ComputeCost
from famx.nn.masks import real_positions
from famx.registry import register


@register
class AdaptiveSpanAttention(ComputeCost, Attention):
    """`out(w v)` with `w ~ m exp(R q (R k)^T / (temperature sqrt(head_dim)))`.

    It takes time O(t * (max_span + ramp)), in evaluation with the longest z in place of max_span.
    `m = clamp((z + ramp - |i - j|) / ramp, 0, 1)` with `z = max_span * sigmoid(W x)` for each
    position and head, and `temperature = 1 + temp_scale * (1 - z / max_span)`. Attention to a
    memory, which has no distance from the queries, is plain attention.

    Args:
        max_span: largest z in positions, at least 1.
        ramp: positions over which a key's weight falls from 1 to 0 beyond z, at least 1.
        temp_scale: temperature of the shortest span minus that of the longest, which is 1; greater
            than -1.
        cost: penalty if all spans are longest, in units of the loss, at least 0.
    """

    def __init__(
        self,
        *,
        max_span: int = 128,
        ramp: int = 32,
        temp_scale: float = 0.01,
        cost: float = 0.0,
        **context,
    ):
        super().__init__(**context)
        if max_span < 1 or ramp < 1:
            raise ValueError(f"max_span={max_span} and ramp={ramp} must be at least 1")
        if temp_scale <= -1 or cost < 0:
            raise ValueError(
                f"temp_scale={temp_scale} must be greater than -1, cost={cost} at least 0"
            )
        self.max_span = max_span
        self.ramp = ramp
        self.temp_scale = temp_scale
        self.cost = cost
        self.span = nn.Linear(self.d_model, self.n_heads)

    def drop_self_attention(self) -> None:
        """Removes the spans, which attention to a memory does not have."""
        del self.span

    def forward(self, x, memory=None, mask=None, state=None):
        """See `Block.forward`."""
        q, k, v = self.project(x, memory, state)
        if memory is not None:
            return self.merge(attend(q, k, v, mask, causal=False))

        # spans, and their penalty and metrics
        real = real_positions(mask, x) if self.training or self.observed else None
        fraction = self.span_fraction(x, real)
        self.record_spans(fraction, real)

        # attention within the spans, with their temperature
        q = q / (1 + self.temp_scale * (1 - fraction))[..., None]
        window = self.max_span + self.ramp
        reach = self.max_span * fraction
        if skips_closed(self, x):
            # where all spans reach all keys, plain attention; else the window of the longest span
            shortest, longest = shortest_and_longest(reach)
            if shortest >= k.shape[-2] - 1:
                return self.merge(attend(q, k, v, mask, self.causal))
            window = math.ceil(min(window, longest + self.ramp))
            if math.isfinite(longest) and not x.is_cuda:
                arguments = (q, k, v, window, mask, self.causal, reach, self.ramp)
                return self.merge(attend_soft_window(*arguments))
        return self.merge(banded(q, k, v, window, mask, self.causal, reach, self.ramp))

    def span_fraction(
        self, x: Float[Tensor, "b t d"], real: Float[Tensor, "b t 1"] | None
    ) -> Float[Tensor, "b h t"]:
        """Returns `z / max_span`.

        Args:
            real: 1 for positions that are not padding; None if nothing is recorded.
        """
        return self.span(x).sigmoid().mT

    def record_spans(
        self, fraction: Float[Tensor, "b h t"], real: Float[Tensor, "b t 1"] | None
    ) -> None:
        """Stores penalty and metrics: means over the positions that are not padding."""
        self.last_compute = None
        if real is None:
            return
        mean = (fraction * real.mT).sum((0, 2)) / real.sum().clamp(min=1)
        if self.training:
            self.last_compute = mean.mean()
        if self.observed:
            self.metrics = {
                "span": self.max_span * mean.detach(),
                "over_time/span": self.max_span * fraction[-1].detach(),
            }
