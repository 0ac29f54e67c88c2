"""Heads pass on their output or not, by thresholds that adapt to the loss (seed.md)."""

from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from famx.attention.base import Attention, attend
from famx.nn.gating import Selection, select_open, skips_closed, straight_through
from famx.nn.masks import real_positions, visible
from famx.nn.processes import sum_over_processes
from famx.nn.state import Cache, DecodeState
from famx.registry import register

SLOPE = 4.0  # slope of the sigmoid whose gradient replaces that of the step function
DECAY = 0.99  # decay of the running means that `after_step` compares with


@register
class GatedPassAttention(Attention):
    """`sum_h pass_h (W_h attend_h(q, k, v) + bias / n_heads)`, `pass_h` 0 or 1.

    A head passes if its potential exceeds a threshold. Each head hands its potential from layer to
    layer: `p <- leak p + gain tanh(W pool(x))`. It starts from 0 in the first layer, and from the
    mean over heads if the previous layer has another number of heads. `pass = 1[p > threshold]`,
    with the gradient of `sigmoid(4 (p - threshold))`. If causal, `pool` is a running mean and each
    position has a potential; otherwise it is a mean over the sample, which has one potential. In
    evaluation only the heads that pass attend.

    After each training step, `threshold -= rate * sign(mean loss - loss) * (passed - mean passed)`,
    with running means: a head that passed more often than on average passes more easily if the loss
    was lower than average, and less easily if it was higher. `passed` is the mean over all
    positions of the step except padding. With a memory, padding of `x` is unknown.

    Args:
        leak: fraction of the previous layer's potential that remains, in [0, 1].
        rate: step size of the thresholds, at least 0.
    """

    connects_layers: ClassVar[bool] = True
    threshold: Float[Tensor, " h"]
    mean_loss: Float[Tensor, ""]
    mean_passed: Float[Tensor, " h"]
    passed_total: Float[Tensor, " h"]
    counted: Float[Tensor, ""]

    def __init__(self, *, leak: float = 0.5, rate: float = 0.01, **context):
        super().__init__(**context)
        if not 0 <= leak <= 1 or rate < 0:
            raise ValueError(f"leak={leak} must be in [0, 1], rate={rate} at least 0")
        self.leak = leak
        self.rate = rate
        self.evidence = nn.Linear(self.d_model, self.n_heads)
        self.gain = nn.Parameter(torch.ones(self.n_heads))
        # below the initial potentials of 0, since of a head that never passes only the gate learns
        self.register_buffer("threshold", torch.full((self.n_heads,), -0.5))
        self.register_buffer("mean_loss", torch.tensor(torch.nan))
        self.register_buffer("mean_passed", torch.full((self.n_heads,), torch.nan))
        # sum of passes by head and number of positions since the last `after_step`; buffers, which
        # a training step adds to in place, as a CUDA graph requires
        self.register_buffer("passed_total", torch.zeros(self.n_heads), persistent=False)
        self.register_buffer("counted", torch.zeros(()), persistent=False)

    def forward(self, x, memory=None, mask=None, state=None):
        """See `Block.forward`."""
        cache, offset = self.advance(state, 0)
        if skips_closed(self, x):
            passes = self.passes(x, memory, mask, cache, self.message(state, memory, offset))
            y = self.attend_passing(passes, x, memory, mask, state)
        else:
            q, k, v = self.project(x, memory, state)
            y = attend(q, k, v, mask, self.causal and memory is None)
            passes = self.passes(x, memory, mask, cache, self.message(state, memory, offset))
        if self.observed:
            keys = offset + x.shape[1] if memory is None else memory.shape[1]
            self.metrics["flops"] = self.flops_per_position(self.metrics["passed"], keys)

        # a head that does not pass adds no bias either: without passing heads, the output is 0
        if y is None:
            return torch.zeros_like(x)
        return self.merge(y * passes) - (1 - passes.mean(1)) * self.out.bias

    def attend_passing(
        self,
        passes: Float[Tensor, "b h _ 1"],
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"] | None,
        mask: Bool[Tensor, "#b #h #t s"] | None,
        state: DecodeState | None,
    ) -> Float[Tensor, "b h t k"] | None:
        """Returns the attention of the heads that pass, arbitrary for others; None if none pass."""
        selection = select_open(passes[..., 0].flatten(0, 1) > 0)
        if selection is not None and selection.is_empty:
            # later chunks attend to the keys of this one
            if state is not None and state.incremental:
                self.project(x, memory, state)
            return None
        q, k, v = self.project(x, memory, state)
        causal = self.causal and memory is None
        if selection is None:
            return attend(q, k, v, mask, causal)
        return attend_selected(selection, passes.shape[2], q, k, v, mask, causal)

    def passes(
        self,
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"] | None,
        mask: Bool[Tensor, "#b #h #t s"] | None,
        cache: Cache,
        message: Cache,
    ) -> Float[Tensor, "b h _ 1"]:
        """Returns 1 where a head passes, else 0; the message carries on the potentials."""
        # the potential, with that of the previous layer
        potential = self.gain * self.evidence(self.pool(x, memory, mask, cache)).tanh()
        if "potential" in message:
            previous = message["potential"]
            if previous.shape[-1] != potential.shape[-1]:
                previous = previous.mean(-1, keepdim=True)
            potential = potential + self.leak * previous
        message["potential"] = potential
        passes = straight_through((SLOPE * (potential - self.threshold)).sigmoid(), 0.5)
        if self.training or self.observed:
            real = real_positions(mask if memory is None else None, x)
            self.record_passes(passes.detach(), potential.detach(), real)
        return rearrange(passes, "b t h -> b h t 1")

    def record_passes(
        self,
        passes: Float[Tensor, "b _ h"],
        potential: Float[Tensor, "b _ h"],
        real: Float[Tensor, "b t 1"],
    ) -> None:
        """Stores sums for `after_step`, and metrics, over the positions that are not padding."""
        real = real.float()
        count = real.sum()
        if self.training:
            self.passed_total += (passes * real).sum((0, 1))
            self.counted += count
        if self.observed:
            self.metrics = {"threshold": self.threshold.clone()}
            for name, values in (("passed", passes), ("potential", potential)):
                self.metrics[name] = (values * real).sum((0, 1)) / count.clamp(min=1)
                self.metrics[f"over_time/{name}"] = values[-1].T.expand(-1, real.shape[1])

    def flops_per_position(self, passed: Float[Tensor, " h"], keys: int) -> Float[Tensor, ""]:
        """Returns the FLOPs of one position if heads that do not pass are not computed.

        It counts four projections, scores and mixing, times the fraction of heads that pass, but
        not pool and potential.

        Args:
            passed: fraction of the positions at which each head passes.
        """
        return passed.mean() * 4 * self.d_model * (2 * self.d_model + keys)

    @torch.no_grad()
    def after_step(self, loss: Float[Tensor, ""]) -> None:
        """Updates thresholds: passing becomes easier after a low loss, harder after a high one."""
        # sums over the whole batch, of which each process computes a share
        sums = sum_over_processes(torch.cat((self.passed_total, self.counted[None])))
        counted = sums[-1]
        # without a training call since the last step, nothing changes
        trained = counted > 0
        passed = sums[:-1] / counted.clamp(min=1)
        # the means begin at the values of the first step
        mean_loss = torch.where(self.mean_loss.isnan(), loss, self.mean_loss)
        mean_passed = torch.where(self.mean_passed.isnan(), passed, self.mean_passed)

        direction = (mean_loss - loss).sign().nan_to_num()
        change = self.rate * direction * (passed - mean_passed)
        self.threshold -= torch.where(trained, change, 0.0)

        # running means; a loss that is not finite does not change its mean
        new_mean_loss = DECAY * mean_loss + (1 - DECAY) * loss
        learns = loss.isfinite() & trained
        self.mean_loss.copy_(torch.where(learns, new_mean_loss, self.mean_loss))
        new_mean_passed = DECAY * mean_passed + (1 - DECAY) * passed
        self.mean_passed.copy_(torch.where(trained, new_mean_passed, self.mean_passed))
        self.passed_total.zero_()
        self.counted.zero_()


def attend_selected(
    selection: Selection,
    gates: int,
    q: Float[Tensor, "b h t k"],
    k: Float[Tensor, "b h s k"],
    v: Float[Tensor, "b h s k"],
    mask: Bool[Tensor, "#b #h #t s"] | None,
    causal: bool,
) -> Float[Tensor, "b h t k"]:
    """Returns `attend` for the selected heads and positions; the values of others are arbitrary.

    Args:
        selection: its rows are pairs of a sample and a head, in the order of (b h).
        gates: number of gates of such a pair: 1 for all positions, or one for each.
    """
    batch, heads, t, _ = q.shape
    sample = selection.rows // heads
    head = selection.rows % heads
    mask = visible(mask, t, k.shape[-2], causal, q.device)
    if mask is not None:
        mask = mask.expand(batch, heads, -1, -1)
        if gates == 1 or mask.shape[2] == 1:
            mask = mask[sample, head][:, None]
        else:
            mask = mask[sample[:, None], head[:, None], selection.positions][:, None]
    pairs_q = q.flatten(0, 1)
    key = selection.take_rows(k.flatten(0, 1))[:, None]
    value = selection.take_rows(v.flatten(0, 1))[:, None]
    y = torch.zeros_like(pairs_q)
    if gates == 1:
        attended = attend(selection.take_rows(pairs_q)[:, None], key, value, mask, causal=False)
        y = y.index_copy(0, selection.rows, attended[:, 0].to(y))
    else:
        attended = attend(selection.take(pairs_q)[:, None], key, value, mask, causal=False)
        y = selection.put(y, attended[:, 0])
    return y.unflatten(0, (batch, heads))
