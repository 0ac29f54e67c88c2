"""Heads that may decline to pass anything on, which makes later passes easier or harder (seed.md)."""

from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from famx.attention.base import Attention, attend
from famx.nn.gating import straight_through
from famx.nn.masks import real_positions
from famx.registry import register

SLOPE = 4.0  # of the sigmoid whose gradient stands for the step's
MEMORY = 0.99  # of the running means that feedback compares with


@register
class GatedPassAttention(Attention):
    """`sum_h pass_h (W_h attend_h(q, k, v) + bias / n_heads)`, passes where a potential is above a threshold.

    Each head's potential goes from layer to layer: `p <- leak p + gain tanh(W pool(x))`, from 0 in the first, and from
    the heads' mean where the layer before has another number of them.
    `pass = 1[p > threshold]`, with the gradient of `sigmoid(4 (p - threshold))`. Causal, `pool` is a running mean and
    every position has a potential; else a mean over the sample, which has one.

    After each training step, `threshold -= rate * sign(usual loss - loss) * (passed - usually passed)`: a head that
    passed more often than usual passes more easily if the loss was lower than usual, and less easily if it was higher.
    `passed` is the mean over all positions of the step but padding; with a memory, nothing tells of padding.

    Args:
        leak: what remains of the potential of the layer before, in [0, 1].
        rate: how far a threshold moves, at least 0.
    """

    connects_layers: ClassVar[bool] = True

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        rotary: nn.Module,
        causal: bool = False,
        *,
        leak: float = 0.5,
        rate: float = 0.01,
    ):
        super().__init__(d_model, n_heads, rotary, causal)
        if not 0 <= leak <= 1 or rate < 0:
            raise ValueError(f"leak={leak} must be in [0, 1], rate={rate} at least 0")
        self.leak, self.rate = leak, rate
        self.evidence, self.gain = nn.Linear(d_model, n_heads), nn.Parameter(torch.ones(n_heads))
        # below 0, where potentials begin: a head that never passes would learn from its gate alone
        self.register_buffer("threshold", torch.full((n_heads,), -0.5))
        self.register_buffer("usual_loss", torch.tensor(torch.nan))
        self.register_buffer("usual_passed", torch.full((n_heads,), torch.nan))
        self.passed: tuple[Tensor, Tensor] | None = (
            None  # since the last feedback: by head, and how many positions
        )

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"] | None = None,
        mask: Bool[Tensor, "#b #h #t s"] | None = None,
        state: dict | None = None,
    ) -> Float[Tensor, "b t d"]:
        """See `Attention.forward`."""
        q, k, v = self.project(x, memory, state)
        y = attend(q, k, v, mask, self.causal and memory is None)
        cache, end = self.cache(state, 0)
        passes = self.passes(x, mask, memory, cache, self.shared(state, memory, end))
        if self.observed:
            d_model = x.shape[-1]
            self.metrics["flops"] = (
                self.metrics["passed"].mean() * 4 * d_model * (2 * d_model + k.shape[-2])
            )
        # no head, no bias: shut, the block adds nothing
        return self.merge(y * passes) - (1 - passes.mean(1)) * self.out.bias

    def passes(
        self,
        x: Float[Tensor, "b t d"],
        mask: Bool[Tensor, "#b #h #t s"] | None,
        memory: Float[Tensor, "b s d"] | None,
        cache: dict,
        shared: dict,
    ) -> Float[Tensor, "b h _ 1"]:
        """1 where a head passes, else 0. Leaves the potentials of this place for the next layer."""
        potential = self.gain * self.evidence(self.pool(x, memory, mask, cache)).tanh()
        if "potential" in shared:
            before = shared["potential"]
            alike = before.shape[-1] == potential.shape[-1]
            potential = potential + self.leak * (before if alike else before.mean(-1, keepdim=True))
        shared["potential"] = potential
        passes = straight_through((SLOPE * (potential - self.threshold)).sigmoid(), 0.5)
        if self.training or self.observed:
            self.account(
                passes.detach(),
                potential.detach(),
                real_positions(mask if memory is None else None, x),
            )
        return rearrange(passes, "b t h -> b h t 1")

    def account(
        self,
        passes: Float[Tensor, "b _ h"],
        potential: Float[Tensor, "b _ h"],
        real: Float[Tensor, "b t 1"],
    ) -> None:
        """Keeps what `feedback` and the metrics tell, of the positions that are not padding."""
        real = real.float()
        count = real.sum()
        if self.training:
            total, before = self.passed or (0, 0)
            self.passed = total + (passes * real).sum((0, 1)), before + count
        if self.observed:
            self.metrics = {"threshold": self.threshold.clone()}
            for name, each in (("passed", passes), ("potential", potential)):
                self.metrics[name] = (each * real).sum((0, 1)) / count.clamp(min=1)
                self.metrics[f"over_time/{name}"] = each[-1].T.expand(-1, real.shape[1])

    @torch.no_grad()
    def after_step(self, loss: Float[Tensor, ""]) -> None:
        """Moves the thresholds by what the last training step's loss says about those who passed."""
        if self.passed is None:
            return
        total, count = self.passed
        passed = total / count.clamp(min=1)
        usual_loss = torch.where(self.usual_loss.isnan(), loss, self.usual_loss)
        usual = torch.where(self.usual_passed.isnan(), passed, self.usual_passed)
        self.threshold -= self.rate * (usual_loss - loss).sign().nan_to_num() * (passed - usual)
        self.usual_loss.copy_(
            torch.where(loss.isfinite(), MEMORY * usual_loss + (1 - MEMORY) * loss, self.usual_loss)
        )
        self.usual_passed.copy_(MEMORY * usual + (1 - MEMORY) * passed)
        self.passed = None
