"""How far back a head looks follows from what it looks for (seed.md; the dynamic span of arXiv:1905.07799)."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from famx.attention._banded import banded
from famx.attention.base import Attention, attend
from famx.nn.hooks import ComputeCost
from famx.nn.masks import real_positions
from famx.registry import register


@register
class AdaptiveSpanAttention(ComputeCost, Attention):
    """`out(w v)`, `w ~ m exp(R q (R k)^T / (temperature sqrt(head_dim)))`, in time O(t * (max_span + ramp)).

    `m = clamp((z + ramp - |i - j|) / ramp, 0, 1)` with `z = max_span * sigmoid(W x)` for each position and head, and
    `temperature = 1 + temp_scale * (1 - z / max_span)`. A memory has no distance from the queries and is seen whole.

    Args:
        max_span: positions that z may reach, at least 1.
        ramp: positions over which a key's weight falls from 1 to 0 beyond z, at least 1.
        temp_scale: how much flatter the shortest span chooses than the longest, greater than -1; 0 makes no difference.
        cost: penalty for all spans at their longest, in units of the loss, at least 0.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        rotary: nn.Module,
        causal: bool = False,
        *,
        max_span: int = 128,
        ramp: int = 32,
        temp_scale: float = 0.01,
        cost: float = 0.0,
    ):
        super().__init__(d_model, n_heads, rotary, causal)
        if max_span < 1 or ramp < 1:
            raise ValueError(f"max_span={max_span} and ramp={ramp} must be at least 1")
        if temp_scale <= -1 or cost < 0:
            raise ValueError(
                f"temp_scale={temp_scale} must be greater than -1, cost={cost} at least 0"
            )
        self.max_span, self.ramp, self.temp_scale, self.cost = max_span, ramp, temp_scale, cost
        self.span = nn.Linear(d_model, n_heads)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"] | None = None,
        mask: Bool[Tensor, "#b #h #t s"] | None = None,
        state: dict | None = None,
    ) -> Float[Tensor, "b t d"]:
        """See `Attention.forward`."""
        q, k, v = self.project(x, memory, state)
        if memory is not None:
            return self.merge(attend(q, k, v, mask, causal=False))
        real = real_positions(mask, x) if self.training or self.observed else None
        share = self.shares(x, real)
        self.account(share, real)
        q = q / (1 + self.temp_scale * (1 - share))[..., None]
        window, reach = self.max_span + self.ramp, self.max_span * share
        return self.merge(banded(q, k, v, window, mask, self.causal, reach, self.ramp))

    def shares(
        self, x: Float[Tensor, "b t d"], real: Float[Tensor, "b t 1"] | None
    ) -> Float[Tensor, "b h t"]:
        """`z / max_span`."""
        return self.span(x).sigmoid().mT

    def account(self, share: Float[Tensor, "b h t"], real: Float[Tensor, "b t 1"] | None) -> None:
        """Keeps what `penalty` and the metrics tell: means over the positions that are not padding."""
        self.last_compute = None
        if real is None:
            return
        mean = (share * real.mT).sum((0, 2)) / real.sum().clamp(min=1)
        self.last_compute = mean.mean() if self.training else None
        if self.observed:
            spans = self.max_span * share[-1].detach()
            self.metrics = {"span": self.max_span * mean.detach(), "over_time/span": spans}
