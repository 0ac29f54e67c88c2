"""A myelinated axon: inner layers with nodes of Ranvier, jumps over them, and a working memory (seed.md)."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import gumbel_softmax

from famx.attention.base import Block, attend
from famx.nn.gating import straight_through
from famx.nn.hooks import ComputeCost
from famx.nn.masks import pool_weights, real_positions, visible
from famx.nn.state import append_to_cache, pool_source
from famx.registry import register

JUMPS = 3  # the farthest
POLICY = 128  # hidden channels, as in the seed


class Node(nn.Module):
    """A node of Ranvier: says for each position how much it matters, and how much of the attention to add."""

    def __init__(self, d_model: int, adapted: bool):
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.importance, self.gate = nn.Linear(d_model, 1), nn.Linear(d_model, 1)
        self.adapter = nn.Linear(d_model, d_model) if adapted else nn.Identity()
        # a node at first, for one that is none would learn slowly; of attention a little, for that is noise at first
        nn.init.constant_(self.importance.bias, 2.0)
        nn.init.constant_(self.gate.bias, -2.0)
        # a query that is its own key would find little but itself: product with itself sqrt(head_dim), others about 0
        nn.init.constant_(self.norm.weight, 0.3)


@register
class MyelinatedAttention(ComputeCost, Block):
    """Inner layers `x += visit * node * gate * adapter(attend(LN x))` between which a position may jump.

    With p = sigmoid(W LN x): `node = 1[p > threshold]`; queries, keys and values are all `LN x`, by heads; the
    adapter is linear on even layers, none on odd. Working memory: `m <- g m + (1-g) pool(x)`, `g = sigmoid(W pool(x))`.
    From each visited layer but the last, a jump of l = 1, 2 or 3 layers (never beyond the last) is drawn from
    `softmax(MLP(pool(x0)))` and adds `w_l x0 + (1 - w_l) m`. At the end `x += sigmoid(W LN x) MLP(LN x)`, and the
    result is `x - x0`.

    Causal, `pool` is a running mean and every position jumps for itself; else a mean over the sample, which jumps as
    one. With a memory, what is attended to and pooled is that. Node and jump are hard, with the gradient of p and of
    the softmax (straight-through; Gumbel noise in training, the likeliest jump in evaluation). All layers are computed
    and what is skipped is multiplied by 0; `flops` tells what would be left.

    Args:
        n_layers: inner layers, at least 2.
        threshold: importance above which a position is a node, in [0, 1).
        cost: penalty for visiting every node at every position, in units of the loss.
        expansion: width of the last MLP, in units of d_model.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        rotary: nn.Module,
        causal: bool = False,
        *,
        n_layers: int = 3,
        threshold: float = 0.1,
        cost: float = 0.001,
        expansion: float = 1.0,
    ):
        super().__init__(d_model, n_heads, rotary, causal)
        if n_layers < 2 or not 0 <= threshold < 1:
            raise ValueError(
                f"n_layers={n_layers} must be at least 2, threshold={threshold} in [0, 1)"
            )
        self.threshold, self.cost = threshold, cost
        self.nodes = nn.ModuleList(Node(d_model, adapted=i % 2 == 0) for i in range(n_layers))
        self.policy = nn.Sequential(nn.Linear(d_model, POLICY), nn.ReLU(), nn.Linear(POLICY, JUMPS))
        self.jump_weights = nn.Parameter(torch.tensor([0.1, 0.05, 0.01]))
        self.working_memory = nn.Parameter(torch.zeros(1, 1, d_model))
        self.memory_gate = nn.Linear(d_model, 1)
        width = round(expansion * d_model)
        self.mlp_norm, self.mlp_gate = nn.LayerNorm(d_model), nn.Linear(d_model, 1)
        self.mlp = nn.Sequential(nn.Linear(d_model, width), nn.GELU(), nn.Linear(width, d_model))
        # at first most jumps are of one layer, which skips none
        self.policy[-1].bias = nn.Parameter(torch.tensor([2.0, 0.0, 0.0]))
        nn.init.constant_(self.mlp_gate.bias, 1.0)
        # memory fills slowly: it is added to every position, and what is the same everywhere drowns what is not
        nn.init.constant_(self.memory_gate.bias, 3.0)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"] | None = None,
        mask: Bool[Tensor, "#b #h #t s"] | None = None,
        state: dict | None = None,
    ) -> Float[Tensor, "b t d"]:
        """See `Attention.forward`."""
        cache, offset = self.cache(state, x.shape[1])
        causal, keys = (
            self.causal and memory is None,
            (offset + x.shape[1]) if memory is None else memory.shape[1],
        )
        shares = pool_weights(visible(mask, x.shape[1], keys, causal, x.device), keys, x)
        start, working, last = x, self.working_memory, len(self.nodes) - 1
        logits = self.policy(shares @ pool_source("start", x, memory, cache))
        visits = [x.new_ones(1, 1, 1), *[x.new_zeros(1, 1, 1)] * last]
        opened, jumps = [], []
        for i, node in enumerate(self.nodes):
            normed = node.norm(x)
            opened.append(
                visits[i] * straight_through(node.importance(normed).sigmoid(), self.threshold)
            )
            attended = self.attended(i, normed, memory, mask, cache, offset)
            x = x + opened[i] * node.gate(normed).sigmoid() * node.adapter(attended)
            if i == last:
                break
            pooled = shares @ pool_source(f"pooled{i}", x, memory, cache)
            working = working + visits[i] * (1 - self.memory_gate(pooled).sigmoid()) * (
                pooled - working
            )
            jump = self.jump(logits)
            weight = (jump * self.jump_weights).sum(-1, keepdim=True)
            x = x + visits[i] * (weight * start + (1 - weight) * working)
            jumps.append(visits[i] * jump)
            for length, taken in enumerate(jumps[i].split(1, dim=-1), start=1):
                to = min(i + length, last)
                visits[to] = visits[to] + taken
        self.account(opened, jumps, keys, mask if memory is None else None)
        normed = self.mlp_norm(x)
        return x - start + self.mlp_gate(normed).sigmoid() * self.mlp(normed)

    def attended(
        self,
        i: int,
        normed: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"] | None,
        mask: Bool[Tensor, "#b #h #t s"] | None,
        cache: dict,
        offset: int,
    ) -> Float[Tensor, "b t d"]:
        """What the i-th layer attends to, with its normed input as queries, keys and values alike."""
        query = self.rotary(self.heads(normed), offset)
        if memory is None:
            append_to_cache(cache, **{f"key{i}": query, f"value{i}": self.heads(normed)})
        elif f"key{i}" not in cache:
            value = self.heads(self.nodes[i].norm(memory))
            cache |= {f"key{i}": self.rotary(value), f"value{i}": value}
        y = attend(
            query, cache[f"key{i}"], cache[f"value{i}"], mask, self.causal and memory is None
        )
        return rearrange(y, "b h t k -> b t (h k)")

    def jump(self, logits: Float[Tensor, "b t jumps"]) -> Float[Tensor, "b t jumps"]:
        """One-hot: how many layers on. With the gradient of the softmax in training."""
        if self.training:
            return gumbel_softmax(logits, hard=True)
        return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)

    def account(
        self,
        opened: list[Float[Tensor, "_ _ 1"]],
        jumps: list[Float[Tensor, "_ _ jumps"]],
        keys: int,
        mask: Bool[Tensor, "#b #h #t s"] | None,
    ) -> None:
        """Keeps what `penalty` and the metrics tell: means over the positions that are not padding."""
        self.last_compute = None
        if not (self.training or self.observed):
            return
        opened = torch.cat(opened, dim=-1)
        real = real_positions(mask, opened)
        active = (opened * real).sum((0, 1)) / real.sum().clamp(min=1)
        self.last_compute = active.mean() if self.training else None
        if self.observed:
            taken = (sum(jumps) * real).sum((0, 1)).detach()
            d_model, width = self.mlp[0].in_features, self.mlp[0].out_features
            adapters = [
                d_model if isinstance(node.adapter, nn.Linear) else 0 for node in self.nodes
            ]
            each = active.new_tensor([2 * d_model * (2 * keys + adapted) for adapted in adapters])
            self.metrics = {
                "active": active.detach(),
                "jumps": taken / taken.sum().clamp(min=1e-9),
                "flops": active.detach() @ each + 4 * d_model * width,
                "over_time/nodes": opened[-1].detach().T,
                "over_time/jumps": self.far(jumps)[-1].detach().T.expand(-1, opened.shape[1]),
            }

    def far(self, jumps: list[Float[Tensor, "_ _ jumps"]]) -> Float[Tensor, "_ _ inner"]:
        """How many layers on each inner layer but the last sent a position, 0 where it was jumped over itself."""
        lengths = torch.arange(1.0, JUMPS + 1, device=jumps[0].device)
        return torch.stack([(jump * lengths).sum(-1) for jump in jumps], dim=-1)
