"""A pre-norm layer that learns when to be skipped (seed.md: decide_jump; arXiv:1308.3432)."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from famx.layer.prenorm import PreNormLayer
from famx.nn.gating import Selection, select_open, skips_closed, straight_through
from famx.nn.hooks import ComputeCost, ConnectsLayers, Observed
from famx.nn.pooling import running_mean
from famx.nn.state import DecodeState, append_to_cache
from famx.registry import register

HIDDEN = 128  # channels of the gate


@register
class SkipLayer(ComputeCost, PreNormLayer):
    """`x <- x + 1[p > 1/2] (prenorm(x) - x)`, `p = sigmoid(MLP(pool(x)))`.

    If causal, `pool` is a running mean and each position has a gate; otherwise it is a mean over
    the sample, which has one gate. The gate is hard and has the gradient of p (straight-through).
    In training, skipped positions are computed too, and multiplied by 0. In evaluation they are
    not, except that attention computes all positions of a sample of which any is visited. The
    metric `compute` is the fraction of positions that are not skipped. With a memory, the mask is
    that of the memory, so padding of `x` is unknown.

    Args:
        d_model: number of channels.
        attention, feedforward, norm: factories, each of which builds one module.
        causal: whether each position decides from the positions up to it.
        dropout: dropout on the output of each branch, in [0, 1).
        cost: penalty for never skipping, in units of the loss.
    """

    observed: bool = False

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
        self.causal = causal
        self.cost = cost
        hidden = nn.Linear(d_model, HIDDEN)
        output = nn.Linear(HIDDEN, 1)
        self.gate = nn.Sequential(hidden, nn.ReLU(), output)
        # initially no layer is skipped, since a skipped layer does not learn
        nn.init.constant_(output.bias, 2.0)
        self.metrics: dict[str, Tensor] = {}

    def forward(self, x, memory=None, mask=None, state=None):
        """See `Layer.forward`."""
        # the gate, from the padding mask of x where it is known
        mask_of_x = None if mask is None or memory is not None else mask.any(1)
        p = self.gate(self.pool(x, mask_of_x, state)).sigmoid()
        visit = straight_through(p, 0.5)
        self.record_compute(visit.expand(*x.shape[:2], 1), p, mask_of_x)
        selection = select_open(visit[..., 0] > 0) if skips_closed(self, x) else None
        if selection is None:
            return x + visit * (super().forward(x, memory, mask, state) - x)
        return self.visit_selected(selection, visit, x, memory, mask, state)

    def visit_selected(
        self,
        selection: Selection,
        visit: Float[Tensor, "b _ 1"],
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"] | None,
        mask: Bool[Tensor, "#b #h #t s"] | None,
        state: DecodeState | None,
    ) -> Float[Tensor, "b t d"]:
        """Returns `x` with the selected positions, or samples, passed through the layer."""
        if self.observed:
            self.clear_metrics()
        attends_all = self.needs_all_keys(state)
        if selection.is_empty and not attends_all:
            return x
        # attention: for all samples, or those that are visited at some position
        if attends_all:
            attended = x + self.attention(self.attention_norm(x), memory, mask, state)
        else:
            rows = selection.rows
            x_rows = x[rows]
            memory_rows = None if memory is None else memory[rows]
            mask_rows = mask if mask is None or len(mask) == 1 else mask[rows]
            y = self.attention(self.attention_norm(x_rows), memory_rows, mask_rows, state)
            attended = x.index_copy(0, rows, (x_rows + y).to(x))
        if selection.is_empty:
            return x

        # feedforward: for the positions that are visited
        if visit.shape[1] < x.shape[1]:
            y = attended[selection.rows]
            return x.index_copy(0, selection.rows, (y + self.feedforward_of(y)).to(x))
        y = selection.take(attended)
        y = y + self.feedforward_of(y)
        # rows with fewer visits than others are filled up with positions that are skipped
        return selection.put(x, torch.where(selection.take(visit) > 0, y, selection.take(x)))

    def needs_all_keys(self, state: DecodeState | None) -> bool:
        """Returns whether attention has to compute the keys of all samples.

        Later chunks attend to the keys of this one, and messages to other layers hold all samples.
        """
        if state is None:
            return False
        return state.incremental or any(
            isinstance(module, ConnectsLayers) and module.connects_layers
            for module in self.attention.modules()
        )

    def clear_metrics(self) -> None:
        """Clears the metrics of the block and the feedforward, which may not be computed."""
        for module in (*self.attention.modules(), *self.feedforward.modules()):
            if isinstance(module, Observed):
                module.metrics = {}

    def feedforward_of(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Returns the output of the second branch."""
        return self.feedforward(self.feedforward_norm(x))

    def pool(
        self,
        x: Float[Tensor, "b t d"],
        mask: Bool[Tensor, "#b #t s"] | None,
        state: DecodeState | None,
    ) -> Float[Tensor, "b _ d"]:
        """Returns the mean over the positions that each position sees; one mean if all see all."""
        # the sequence so far
        queries = x.shape[1]
        cache = {} if state is None else state.cache(self)
        append_to_cache(cache, inputs=x)
        inputs = cache["inputs"]
        keys = inputs.shape[1]

        # in evaluation, a running mean
        shared = mask is None or mask.shape[1] == 1
        if self.causal and shared and queries > 1 and skips_closed(self, x):
            return running_mean(inputs, None if mask is None else mask.mT, queries)

        # a mask of the positions that each position sees
        if self.causal:
            past = torch.ones(1, queries, keys, dtype=torch.bool, device=x.device)
            past = past.tril(keys - queries)
            mask = past if mask is None else past & mask
        if mask is None:
            return inputs.mean(1, keepdim=True)
        weights = mask.to(x)
        return (weights / weights.sum(-1, keepdim=True).clamp(min=1)) @ inputs

    def record_compute(
        self,
        visit: Float[Tensor, "b t 1"],
        p: Float[Tensor, "b _ 1"],
        mask: Bool[Tensor, "#b #t s"] | None,
    ) -> None:
        """Stores penalty and metrics: the visited fraction of the positions without padding."""
        if mask is None:
            real = torch.ones_like(visit)
        else:
            # the mask covers earlier chunks too
            real = mask.any(1)[:, -visit.shape[1] :, None].to(visit)
        compute = (visit * real).sum() / real.expand_as(visit).sum().clamp(min=1)
        self.last_compute = compute if self.training else None
        if self.observed:
            self.metrics = {
                "compute": compute.detach(),
                "probability": p.detach().mean(),
                "over_time/visit": visit[-1].detach().T,
            }
