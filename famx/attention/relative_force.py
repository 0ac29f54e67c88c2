"""Positions attract each other by a force in a shared space and along paths of edges (seed.md)."""

import math

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from famx.attention._chunks import queries_per_chunk
from famx.attention._mix_by_scores import MixByScores, MixByScoresInChunks
from famx.attention._relative_force import (
    REACH,
    ScoreTerms,
    by_head,
    exact_paths,
    low_rank_paths,
)
from famx.attention.base import Block, distance_metrics
from famx.nn.masks import visible
from famx.nn.state import Cache, append_to_cache
from famx.registry import register


@register
class RelativeForceAttention(Block):
    """`softmax((g force + (1 - g) topology) / temperature) v` with `g = sigmoid(balance)`.

    Emitters `e = R W_e x` and receivers `r = R W_r memory` are points of one space of `D = d_model`
    axes, in which each head has a direction d: `force(i, j) = <e_i - r_j, d> exp(-rho / sqrt(D)) /
    rho`, with `rho^2 = |e_i - r_j|^2 + softness^2 D`.

    Edges are `A(i, j) = sigmoid(u_i + v_j)` with u linear in x (clamped to +-8) and v linear in
    memory, or 0 if i may not attend to j. With `P(i, j) = A(i, j) / n_i`, for the n_i keys that i
    may attend to, `topology = sum_k softmax(hops)_k n_i P^k`: the probability that k edges lead
    from i to j, relative to chance. Paths of several edges exist only if queries and keys are the
    same sequence.

    Args:
        hop_levels: number of edges of the longest path, at least 1.
        softness: radius below which a force vanishes, in units of sqrt(d_model), above 0.
    """

    def __init__(self, *, hop_levels: int = 3, softness: float = 0.1, **context):
        super().__init__(**context)
        if hop_levels < 1 or softness <= 0:
            raise ValueError(
                f"hop_levels={hop_levels} must be at least 1, softness={softness} above 0"
            )
        self.softness = softness
        self.emitter = nn.Linear(self.d_model, self.d_model)
        self.receiver_value = nn.Linear(self.d_model, 2 * self.d_model)
        self.directions = nn.Parameter(torch.randn(self.n_heads, self.d_model))
        self.edge_from = nn.Linear(self.d_model, self.n_heads)
        self.edge_to = nn.Linear(self.d_model, self.n_heads, bias=False)
        self.hops = nn.Parameter(torch.zeros(hop_levels))
        self.balance = nn.Parameter(torch.tensor(0.5))
        self.log_temperature = nn.Parameter(torch.zeros(self.n_heads, 1, 1))
        self.out = nn.Linear(self.d_model, self.d_model)

    def forward(self, x, memory=None, mask=None, state=None):
        """See `Block.forward`."""
        cache, offset = self.advance(state, x.shape[1])

        # keys: points, values and edges
        if memory is None:
            append_to_cache(cache, **self.receive(x, offset))
        elif "receiver" not in cache:
            cache.update(self.receive(memory))
        value = cache["value"]
        causal = self.causal and memory is None
        mask_now = visible(mask, x.shape[1], value.shape[-2], causal, x.device)

        # scores, and the values mixed by them
        levels = len(self.hops) if memory is None else 1
        incremental = state is not None and state.incremental
        rows_differ = (
            self.causal or incremental or (mask_now is not None and mask_now.shape[-2] > 1)
        )
        if self.observed:
            self.record_parameters()
        exact = levels > 1 and rows_differ
        if exact and not incremental and self.chunk_size(x, value) is not None:
            y, weights = self.mix_by_sample(x, cache, mask_now, levels)
        else:
            y, weights = self.mix(x, offset, cache, mask_now, levels, rows_differ)
        if self.observed and memory is None:
            self.metrics |= self.distances(weights, mask, mask_now)

        # a query that may attend to no key gets zeros
        if mask_now is not None:
            y = y * mask_now.any(-1, keepdim=True)
        return self.out(rearrange(y, "b h t k -> b t (h k)"))

    def chunk_size(self, x: Float[Tensor, "b t d"], value: Float[Tensor, "b h s k"]) -> int | None:
        """Returns how many queries are mixed at a time, None for all."""
        itemsize = torch.promote_types(x.dtype, torch.float32).itemsize
        shape = (len(x), self.n_heads, x.shape[1], value.shape[2])
        return queries_per_chunk(shape, itemsize)

    def mix(
        self,
        x: Float[Tensor, "b t d"],
        offset: int,
        cache: Cache,
        mask: Bool[Tensor, "#b #h #t s"] | None,
        levels: int,
        rows_differ: bool,
    ) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "_ h t _"]]:
        """Returns the values mixed by the scores, and the weights at least of the last sample.

        See `score_terms`. In chunks, there are weights only if the block is observed.
        """
        value = cache["value"]
        chunk = self.chunk_size(x, value)
        if chunk is None:
            terms = self.score_terms(x, offset, cache, mask, levels, rows_differ)
            return MixByScores.apply(value, mask, self.softness, *terms)
        if levels > 1 and rows_differ:
            terms = self.score_terms(x, offset, cache, mask, levels, rows_differ)
        else:
            # computed again in the backward pass, from the cache as it is now
            arguments = (x, offset, dict(cache), mask, levels, rows_differ)
            terms = checkpoint(
                self.score_terms, *arguments, use_reentrant=False, preserve_rng_state=False
            )
        return MixByScoresInChunks.apply(value, mask, self.softness, chunk, self.observed, *terms)

    def mix_by_sample(
        self,
        x: Float[Tensor, "b t d"],
        cache: Cache,
        mask: Bool[Tensor, "#b #h #t s"] | None,
        levels: int,
    ) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "_ h t _"]]:
        """Returns `mix` sample by sample, with exact paths that the backward pass computes again.

        Exact paths need several tensors of the size of the scores.
        """

        def mix_sample(
            x: Float[Tensor, "1 t d"], mask: Bool[Tensor, "1 #h #t s"] | None, cache: Cache
        ) -> tuple[Float[Tensor, "1 h t k"], Float[Tensor, "_ h t _"]]:
            # a copy of the cache, in which the steps of the paths are stored
            return self.mix(x, 0, dict(cache), mask, levels, rows_differ=True)

        outputs = []
        for i in range(len(x)):
            sample_cache = {name: tensor[i : i + 1] for name, tensor in cache.items()}
            sample_mask = mask if mask is None or len(mask) == 1 else mask[i : i + 1]
            y, weights = checkpoint(
                mix_sample,
                x[i : i + 1],
                sample_mask,
                sample_cache,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            outputs.append(y)
        return torch.cat(outputs), weights

    def score_terms(
        self,
        x: Float[Tensor, "b t d"],
        offset: int,
        cache: Cache,
        mask: Bool[Tensor, "#b #h #t s"] | None,
        levels: int,
        rows_differ: bool,
    ) -> ScoreTerms:
        """Returns the terms of the scores.

        Args:
            levels: number of edges of the longest path.
            rows_differ: whether queries may attend to different keys, now or in later chunks.
        """
        # weights of the force and of the paths of each length
        wide = torch.promote_types(x.dtype, torch.float32)
        balance = self.balance.to(wide).sigmoid()
        sharpness = (-self.log_temperature.to(wide)).exp()
        hops = self.hops[:levels].to(wide).softmax(0)[:, None, None, None]
        shares = hops * (1 - balance) * sharpness

        # paths of more than one edge
        edge_from = by_head(self.edge_from(x)).clamp(-REACH, REACH)
        edge_to = cache["edge_to"]
        rows = columns = None
        if levels > 1 and rows_differ:
            rows, columns = exact_paths(edge_from, edge_to, mask, shares[1:], cache)
        elif levels > 1:
            rows, columns = low_rank_paths(edge_from, edge_to, mask, shares[1:])

        # paths of one edge: sigmoid(u + v) = e^u / (e^u + e^-v) needs no exponential of each pair
        u = edge_from.exp()
        v = edge_to.clamp(-80, 80).neg().exp()

        # points, centred since only their differences matter
        emitter = self.rotate(self.emitter(x), offset).to(wide)
        receiver = cache["receiver"].to(wide)
        centre = receiver.mean(1, keepdim=True).detach()
        e = (emitter - centre) / math.sqrt(self.d_model)
        r = (receiver - centre) / math.sqrt(self.d_model)
        share = shares[0] * u
        directions = (balance * sharpness)[..., 0] * self.directions
        return ScoreTerms(share, u, v, e, r, directions, rows, columns)

    def record_parameters(self) -> None:
        """Stores metrics of the learned weights of the terms."""
        wide = torch.promote_types(self.balance.dtype, torch.float32)
        log_temperature = self.log_temperature.detach().to(wide)
        self.metrics = {
            "balance": self.balance.detach().to(wide).sigmoid(),
            "hops": self.hops.detach().softmax(0),
            "temperature": 1 / (-log_temperature).exp().flatten(),
        }

    def receive(self, x: Float[Tensor, "b s d"], offset: int = 0) -> dict[str, Tensor]:
        """Returns the parts of a key: a point, a value, and the logits of edges that lead to it."""
        receiver, value = self.receiver_value(x).chunk(2, dim=-1)
        return {
            "receiver": self.rotate(receiver, offset),
            "value": self.split_heads(value),
            "edge_to": by_head(self.edge_to(x)),
        }

    def rotate(self, points: Float[Tensor, "b s d"], offset: int) -> Float[Tensor, "b s d"]:
        """Rotates points by position, head by head."""
        return rearrange(self.rotary(self.split_heads(points), offset), "b h s k -> b s (h k)")

    def distances(
        self,
        weights: Float[Tensor, "b h t s"],
        mask: Bool[Tensor, "#b #h #t s"] | None,
        mask_now: Bool[Tensor, "#b #h #t s"] | None,
    ) -> dict[str, Tensor]:
        """Returns metrics of how far each head attends in the last sample."""
        last_weights = weights[-1].float()
        if mask_now is not None:
            last_weights = last_weights * mask_now[-1]
        queries, keys = weights.shape[-2:]
        return distance_metrics(
            lambda values: last_weights @ values, mask, queries, keys, weights.device
        )
