"""A myelinated axon: inner layers with nodes of Ranvier, jumps and a working memory (seed.md)."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import gumbel_softmax, linear

from famx.attention.base import Block, attend, key_mask
from famx.nn.gating import Selection, blend, select_open, skips_closed, straight_through
from famx.nn.hooks import ComputeCost
from famx.nn.masks import pool_weights, real_positions, visible
from famx.nn.pooling import running_mean
from famx.nn.state import Cache, append_to_cache, pool_source
from famx.registry import register

MAX_JUMP = 3  # layers
HIDDEN = 128  # channels of the policy, as in seed.md


class Node(nn.Module):
    """A node of Ranvier: scores the importance of each position, and gates its attention."""

    query: Float[Tensor, "d d"] | None

    def __init__(self, d_model: int, has_adapter: bool, projects_queries: bool):
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.importance = nn.Linear(d_model, 1)
        self.gate = nn.Linear(d_model, 1)
        self.adapter = nn.Linear(d_model, d_model) if has_adapter else nn.Identity()
        # initially every position is a node, since other positions learn slowly
        nn.init.constant_(self.importance.bias, 2.0)
        # initially little attention is added, since it is noise
        nn.init.constant_(self.gate.bias, -2.0)
        # initially queries and keys are the same: with a weight of 1, the score of a query with
        # itself would be sqrt(head_dim), others about 0, so it would attend almost only to itself
        nn.init.constant_(self.norm.weight, 0.3)
        weight = nn.Parameter(torch.eye(d_model)) if projects_queries else None
        self.register_parameter("query", weight)


class _Call(NamedTuple):
    """Inputs of one call that all inner layers share.

    Args:
        visible: where a query may attend, future positions excluded if causal.
        incremental: whether later chunks attend to the keys of this one.
        skips: whether only open nodes are computed.
    """

    memory: Float[Tensor, "b s d"] | None
    mask: Bool[Tensor, "#b #h #t s"] | None
    visible: Bool[Tensor, "#b #h #t s"] | None
    cache: Cache
    offset: int
    incremental: bool
    skips: bool


@register
class MyelinatedAttention(ComputeCost, Block):
    """Inner layers `x += visit * node * gate * adapter(attend(LN x))`, with jumps over layers.

    With p = sigmoid(W LN x): `node = 1[p > threshold]`. Keys and values are `LN x`, queries are
    `W_q LN x`, split into heads; W_q begins as the identity. In seed.md's form the queries are
    `LN x` too: a query then prefers its own position to any other, so that no head can look a fixed
    number of positions back. The adapter is linear in even layers and the identity in odd ones.
    Working memory: `m <- g m + (1-g) pool(x)`, `g = sigmoid(W pool(x))`. From each visited layer
    but the last, a jump of l = 1, 2 or 3 layers (never beyond the last) is sampled from
    `softmax(MLP(pool(x0)))` and adds `w_l x0 + (1 - w_l) m`. At the end
    `x += sigmoid(W LN x) MLP(LN x)`, and the result is `x - x0`.

    If causal, `pool` is a running mean and each position has its own jumps; otherwise it is a mean
    over the sample, whose positions jump together. A memory, if given, is attended to and pooled in
    place of `x`. Nodes and jumps are hard decisions with the gradients of p and of the softmax
    (straight-through; Gumbel noise in training, the likeliest jump in evaluation). In training
    all layers are computed, and skipped ones are multiplied by 0; in evaluation only the queries of
    open nodes attend. The metric `flops` leaves out the others.

    Args:
        n_layers: inner layers, at least 2.
        threshold: importance above which a position is a node, in [0, 1).
        cost: penalty for visiting every node at every position, in units of the loss.
        expansion: width of the last MLP, in units of d_model.
        projects_queries: whether queries have W_q; False for seed.md's form.
    """

    has_adapter: Bool[Tensor, " layers"]

    def __init__(
        self,
        *,
        n_layers: int = 3,
        threshold: float = 0.1,
        cost: float = 0.001,
        expansion: float = 1.0,
        projects_queries: bool = True,
        **context,
    ):
        super().__init__(**context)
        if n_layers < 2 or not 0 <= threshold < 1:
            raise ValueError(
                f"n_layers={n_layers} must be at least 2, threshold={threshold} in [0, 1)"
            )
        self.threshold = threshold
        self.cost = cost
        d_model = self.d_model
        self.mlp_width = round(expansion * d_model)
        self.projects_queries = projects_queries
        self.nodes = nn.ModuleList()
        for i in range(n_layers):
            self.nodes.append(Node(d_model, i % 2 == 0, projects_queries))
        has_adapter = torch.tensor([isinstance(node.adapter, nn.Linear) for node in self.nodes])
        self.register_buffer("has_adapter", has_adapter, persistent=False)
        self.policy = nn.Sequential(
            nn.Linear(d_model, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, MAX_JUMP)
        )
        self.jump_weights = nn.Parameter(torch.tensor([0.1, 0.05, 0.01]))
        self.working_memory = nn.Parameter(torch.zeros(1, 1, d_model))
        self.memory_gate = nn.Linear(d_model, 1)
        self.mlp_norm = nn.LayerNorm(d_model)
        self.mlp_gate = nn.Linear(d_model, 1)
        self.mlp = nn.Sequential(
            nn.Linear(d_model, self.mlp_width), nn.GELU(), nn.Linear(self.mlp_width, d_model)
        )
        # initially most jumps are of one layer, which skips none
        self.policy[-1].bias = nn.Parameter(torch.tensor([2.0, 0.0, 0.0]))
        nn.init.constant_(self.mlp_gate.bias, 1.0)
        # initially the memory changes slowly: it is added to every position and hides differences
        nn.init.constant_(self.memory_gate.bias, 3.0)

    def forward(self, x, memory=None, mask=None, state=None):
        """See `Block.forward`."""
        cache, offset = self.advance(state, x.shape[1])
        keys = offset + x.shape[1] if memory is None else memory.shape[1]
        mask_now = visible(mask, x.shape[1], keys, self.causal and memory is None, x.device)
        incremental = state is not None and state.incremental
        skips = skips_closed(self, x)
        call = _Call(memory, mask, mask_now, cache, offset, incremental, skips)
        pool = self.make_pool(call, x)

        # the policy of jumps follows from the pooled input
        start = x
        logits = self.policy(pool("start", x))

        # visits[i] is 1 where a position visits inner layer i; all positions visit the first one
        nodes = cast(list[Node], self.nodes)
        last = len(nodes) - 1
        visits = [x.new_ones(1, 1, 1), *[x.new_zeros(1, 1, 1)] * last]
        working: Tensor = self.working_memory
        open_nodes: list[Tensor] = []
        jumps: list[Tensor] = []
        for i, node in enumerate(nodes):
            # attention, where the position visits the layer and is a node
            x, is_open = self.inner_layer(i, node, visits[i], x, call)
            open_nodes.append(is_open)
            if i == last:
                break

            # a jump adds the input and the updated working memory
            pooled = pool(f"pooled{i}", x)
            update = visits[i] * (1 - self.memory_gate(pooled).sigmoid())
            jump = self.sample_jump(logits)
            weight = (jump * self.jump_weights).sum(-1, keepdim=True)
            if skips:
                # the same up to rounding, in fewer passes over the memory
                working = blend(working, pooled, update)
                added = blend(working, start, weight)
            else:
                working = working + update * (pooled - working)
                added = weight * start + (1 - weight) * working
            x = x + visits[i] * added

            # the jump leads to a later layer
            jumps.append(visits[i] * jump)
            for length, arrival in enumerate(jumps[i].split(1, dim=-1), start=1):
                target = min(i + length, last)
                visits[target] = visits[target] + arrival

        self.record_visits(open_nodes, jumps, keys, mask if memory is None else None)
        normed = self.mlp_norm(x)
        return x - start + self.mlp_gate(normed).sigmoid() * self.mlp(normed)

    def make_pool(
        self, call: _Call, x: Float[Tensor, "b t d"]
    ) -> Callable[[str, Float[Tensor, "b t d"]], Float[Tensor, "b _ d"]]:
        """Returns the pool of this call: of the name of a pool and the positions to add to it."""
        running = self.is_running(x, call.mask, self.causal and call.memory is None)
        counted = key_mask(call.mask) if running else None
        keys = call.offset + x.shape[1] if call.memory is None else call.memory.shape[1]
        weights = None if running else pool_weights(call.visible, keys, x)
        last: dict[str, Tensor] = {}
        return partial(self.pool_once, call, counted, weights, last)

    def pool_once(
        self,
        call: _Call,
        counted: Tensor | None,
        weights: Tensor | None,
        last: dict[str, Tensor],
        name: str,
        x: Float[Tensor, "b t d"],
    ) -> Float[Tensor, "b _ d"]:
        """Returns the mean of positions; in evaluation unchanged ones are pooled only once.

        Args:
            counted: positions that count in a running mean, None for all.
            weights: weights of positions for each query, None for a running mean.
            last: the positions that were pooled last, and their mean.
        """
        source = pool_source(name, x, call.memory, call.cache)
        if call.skips and last and source is last["source"]:
            return last["mean"]
        mean = running_mean(source, counted, x.shape[1]) if weights is None else weights @ source
        last["source"] = source
        last["mean"] = mean
        return mean

    def inner_layer(
        self,
        i: int,
        node: Node,
        visit: Float[Tensor, "_ _ 1"],
        x: Float[Tensor, "b t d"],
        call: _Call,
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b t 1"]]:
        """Returns `x` after inner layer i, and 1 for the positions whose attention is added."""
        normed = node.norm(x)
        is_node = straight_through(node.importance(normed).sigmoid(), self.threshold)
        is_open = visit * is_node
        selection = select_open(is_open[..., 0] > 0) if call.skips else None
        if selection is None:
            attended = self.attend_inner(i, node, normed, call)
            return x + is_open * node.gate(normed).sigmoid() * node.adapter(attended), is_open

        # only the open nodes
        if selection.is_empty:
            if call.incremental and call.memory is None:
                self.keys_values(i, node, normed, call)
            return x, is_open
        attended = self.attend_inner(i, node, normed, call, selection)
        gate = selection.take(is_open) * node.gate(selection.take(normed)).sigmoid()
        return selection.put(x, selection.take(x) + gate * node.adapter(attended)), is_open

    def attend_inner(
        self,
        i: int,
        node: Node,
        normed: Float[Tensor, "b t d"],
        call: _Call,
        selection: Selection | None = None,
    ) -> Float[Tensor, "_ _ d"]:
        """Attends in inner layer i, whose normed input is queries, keys and values.

        Args:
            selection: the queries; None for all.
        """
        query, key, value = self.keys_values(i, node, normed, call)
        if node.query is not None:
            if selection is None:
                projected = linear(normed, node.query)
            else:
                selected = linear(selection.take(normed), node.query)
                projected = selection.put(normed, selected)
            query = self.rotary(self.split_heads(projected), call.offset)
        if selection is None:
            y = attend(query, key, value, call.mask, self.causal and call.memory is None)
        else:
            y = attend(
                selection.take(query.transpose(1, 2)).transpose(1, 2),
                selection.take_rows(key),
                selection.take_rows(value),
                selection.take_mask(call.visible),
                causal=False,
            )
        return rearrange(y, "b h t k -> b t (h k)")

    def keys_values(
        self, i: int, node: Node, normed: Float[Tensor, "b t d"], call: _Call
    ) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "b h s k"], Float[Tensor, "b h s k"]]:
        """Returns rotated `LN x`, and keys and values of inner layer i, which the cache keeps."""
        # keys and values of the chunk are appended, those of a memory computed once
        query = self.rotary(self.split_heads(normed), call.offset)
        cache = call.cache
        key_name = f"key{i}"
        value_name = f"value{i}"
        if call.memory is None:
            append_to_cache(cache, **{key_name: query, value_name: self.split_heads(normed)})
        elif key_name not in cache:
            value = self.split_heads(node.norm(call.memory))
            cache[key_name] = self.rotary(value)
            cache[value_name] = value
        return query, cache[key_name], cache[value_name]

    def sample_jump(self, logits: Float[Tensor, "b t jumps"]) -> Float[Tensor, "b t jumps"]:
        """Returns the length of the jump, one-hot; in training with the gradient of the softmax."""
        if self.training:
            return gumbel_softmax(logits, hard=True)
        return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)

    def record_visits(
        self,
        open_nodes: list[Float[Tensor, "_ _ 1"]],
        jumps: list[Float[Tensor, "_ _ jumps"]],
        keys: int,
        mask: Bool[Tensor, "#b #h #t s"] | None,
    ) -> None:
        """Stores penalty and metrics: means over the positions that are not padding."""
        self.last_compute = None
        if not (self.training or self.observed):
            return
        # the fraction of positions that are active in each layer
        by_layer = torch.cat(open_nodes, dim=-1)
        real = real_positions(mask, by_layer)
        active = (by_layer * real).sum((0, 1)) / real.sum().clamp(min=1)
        if self.training:
            self.last_compute = active.mean()
        # how often each length is jumped, and the jumps of the last sample
        if self.observed:
            by_length = (sum(jumps) * real).sum((0, 1)).detach()
            lengths = self.jump_lengths(jumps)[-1].detach()
            self.metrics = {
                "active": active.detach(),
                "jumps": by_length / by_length.sum().clamp(min=1e-9),
                "flops": self.flops_per_position(active.detach(), keys),
                "over_time/nodes": by_layer[-1].detach().T,
                "over_time/jumps": lengths.T.expand(-1, by_layer.shape[1]),
            }

    def flops_per_position(self, active: Float[Tensor, " layers"], keys: int) -> Float[Tensor, ""]:
        """Returns the FLOPs of one position if inactive nodes are not computed.

        It counts queries, scores, mixing and adapter of each inner layer, times the fraction of
        positions that are active there, and the MLP, but not norms, gates and policy.
        """
        d_model = self.d_model
        queries = 2 * d_model**2 * active.sum() * self.projects_queries
        scores_and_mixing = 4 * d_model * keys * active.sum()
        adapters = 2 * d_model**2 * (active @ self.has_adapter.to(active))
        return queries + scores_and_mixing + adapters + 4 * d_model * self.mlp_width

    def jump_lengths(self, jumps: list[Float[Tensor, "_ _ jumps"]]) -> Float[Tensor, "_ _ inner"]:
        """Returns the length of the jump from each layer but the last, 0 from skipped layers."""
        lengths = torch.arange(1.0, MAX_JUMP + 1, device=jumps[0].device)
        return torch.stack([(jump * lengths).sum(-1) for jump in jumps], dim=-1)
