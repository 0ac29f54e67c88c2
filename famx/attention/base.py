"""Base classes of attention blocks: heads, rotation, cache, mixing."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from famx.nn.gating import skips_closed
from famx.nn.masks import pool_weights, real_positions, visible
from famx.nn.pooling import running_mean
from famx.nn.state import Cache, DecodeState, append_to_cache, pool_source
from famx.notation import Kind


def attend(
    q: Float[Tensor, "b h t k"],
    k: Float[Tensor, "b h s k"],
    v: Float[Tensor, "b h s k"],
    mask: Bool[Tensor, "#b #h #t s"] | None,
    causal: bool,
) -> Float[Tensor, "b h t k"]:
    """Returns `softmax(q k^T / sqrt(head_dim)) v` over the keys that each query may attend to.

    A query that may attend to no key gets zeros.
    """
    t = q.shape[-2]
    s = k.shape[-2]
    # without a mask to build, torch has a faster kernel
    if causal and mask is None and t == s:
        return scaled_dot_product_attention(q, k, v, is_causal=True)
    return scaled_dot_product_attention(q, k, v, visible(mask, t, s, causal, q.device))


def key_mask(mask: Bool[Tensor, "#b #h 1 s"] | None) -> Bool[Tensor, "#b s 1"] | None:
    """Returns True for each key that some head may attend to, of a mask that all queries share."""
    return None if mask is None else mask.any(1).mT


@torch.no_grad()
def distance_metrics(
    mix: Callable[[Float[Tensor, "s 3"]], Float[Tensor, "h t 3"]],
    mask: Bool[Tensor, "#b #h #t s"] | None,
    queries: int,
    keys: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Returns metrics of how far each head attends: `sqrt(sum_j w_ij (i - j)^2)`, in positions.

    The queries are the last positions of the key sequence. Padding and queries without a visible
    key have no distance: they do not count in the mean and are NaN in the image.

    Args:
        mix: mixes values (s 3) by the attention weights of the last sample; a query without a
            visible key gets zeros.
    """
    # moments of the weights over positions, around their middle
    positions = torch.arange(keys, device=device, dtype=torch.float32) - keys / 2
    # autocast would round the squares, whose difference below is small
    with torch.autocast(device.type, enabled=False):
        moments = torch.stack((torch.ones_like(positions), positions, positions.square()), -1)
        total, mean, mean_square = mix(moments).unbind(-1)

    # sum_j w_ij (i - j)^2 from the moments
    query_positions = positions[keys - queries :]
    variance = query_positions.square() - 2 * query_positions * mean + mean_square
    distance = variance.clamp(min=0).sqrt()

    # padding and queries without a visible key have no distance
    last_mask = None if mask is None else mask[-1:]
    real = real_positions(last_mask, total.mT[None])[0, :, 0]
    defined = (total > 0.5) & (real > 0)
    average = (distance * defined).sum(-1) / defined.sum(-1).clamp(min=1)
    return {"distance": average, "over_time/distance": distance.where(defined, torch.nan)}


class Block(nn.Module, ABC):
    """An attention block, whose output a layer adds to `x`.

    Args:
        d_model: number of channels of `x` and of the memory.
        n_heads: number of heads, each of `d_model / n_heads` channels.
        rotary: rotates queries and keys by their positions.
        causal: whether self-attention hides later positions. All of a memory is always visible.
    """

    kind: ClassVar[Kind] = "attention"
    # whether it exchanges messages with the blocks of other layers
    connects_layers: ClassVar[bool] = False
    observed: bool = False

    def __init__(self, d_model: int, n_heads: int, rotary: nn.Module, causal: bool = False):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model={d_model} is not a multiple of n_heads={n_heads}")
        self.d_model = d_model
        self.n_heads = n_heads
        self.rotary = rotary
        self.causal = causal
        self.metrics: dict[str, Tensor] = {}

    @abstractmethod
    def forward(
        self,
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"] | None = None,
        mask: Bool[Tensor, "#b #h #t s"] | None = None,
        state: DecodeState | None = None,
    ) -> Float[Tensor, "b t d"]:
        """Attends from `x` to `memory` where `mask` is True.

        Args:
            memory: positions to attend to; None for those of `x` itself.
            mask: True where a query may attend; None for everywhere.
            state: decode state of a sequence, passed to each call. `x` is then the next chunk of
                the sequence, the keys of earlier chunks are cached, and `mask` covers those too.
                The memory must stay the same.
        """

    def split_heads(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b h t k"]:
        return rearrange(x, "b t (h k) -> b h t k", h=self.n_heads)

    def advance(self, state: DecodeState | None, seq_len: int) -> tuple[Cache, int]:
        """Returns this block's cache, and the first of the next `seq_len` positions."""
        if state is None:
            return {}, 0
        return state.cache(self), state.advance(self, seq_len)

    def message(
        self, state: DecodeState | None, memory: Float[Tensor, "b s d"] | None, offset: int
    ) -> Cache:
        """Returns the message from the previous layer's block of the same class.

        It is empty in the first layer. The block overwrites it for the next layer.

        Args:
            offset: first position of the chunk.
        """
        if state is None:
            return {}
        return state.message(self, cross=memory is not None, offset=offset)

    def pool(
        self,
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"] | None,
        mask: Bool[Tensor, "#b #h #t s"] | None,
        cache: Cache,
    ) -> Float[Tensor, "b _ d"]:
        """Returns the mean of all keys that a position may attend to.

        The result has a single position if all positions attend to the same keys, else one per
        position.
        """
        source = pool_source("pooled", x, memory, cache)
        causal = self.causal and memory is None
        if self.is_running(x, mask, causal):
            return running_mean(source, key_mask(mask), x.shape[1])
        keys = source.shape[1]
        return pool_weights(visible(mask, x.shape[1], keys, causal, x.device), keys, x) @ source

    def is_running(
        self, x: Float[Tensor, "b t d"], mask: Bool[Tensor, "#b #h #t s"] | None, causal: bool
    ) -> bool:
        """Returns whether a pool is computed as a running mean: in evaluation, if causal."""
        if not causal or x.shape[1] == 1 or not skips_closed(self, x):
            return False
        # a mask that differs between queries needs weights of its own for each
        return mask is None or mask.shape[2] == 1


class Attention(Block):
    """`out(mix(R q, R k, v))` with `q = W_q x`, `k, v = W_kv memory`. A subclass defines `mix`."""

    def __init__(self, d_model: int, n_heads: int, rotary: nn.Module, causal: bool = False):
        super().__init__(d_model, n_heads, rotary, causal)
        self.query = nn.Linear(d_model, d_model)
        self.key_value = nn.Linear(d_model, 2 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x, memory=None, mask=None, state=None):
        """See `Block.forward`."""
        q, k, v = self.project(x, memory, state)
        if memory is None:
            return self.merge(self.mix(q, k, v, mask, self.causal))
        return self.merge(self.mix_memory(q, k, v, mask))

    def project(
        self,
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"] | None,
        state: DecodeState | None,
    ) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "b g s2 k"], Float[Tensor, "b g s2 k"]]:
        """Returns the queries of `x`, and the keys and values that they may attend to."""
        cache, offset = self.advance(state, x.shape[1])
        if memory is None:
            append_to_cache(cache, **self.keys_values(x, offset))
        elif "key" not in cache:
            cache.update(self.keys_values(memory))
        q = self.rotary(self.split_heads(self.query(x)), offset)
        return q, cache["key"], cache["value"]

    def merge(self, y: Float[Tensor, "b h t k"]) -> Float[Tensor, "b t d"]:
        """Joins the heads and projects them to the output."""
        return self.out(rearrange(y, "b h t k -> b t (h k)"))

    def keys_values(self, x: Float[Tensor, "b s d"], offset: int = 0) -> dict[str, Tensor]:
        """Returns the rotated `key` and the `value` of positions that begin at `offset`."""
        k, v = self.key_value(x).chunk(2, dim=-1)
        return {"key": self.rotary(self.split_heads(k), offset), "value": self.split_heads(v)}

    def mix(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b g s k"],
        v: Float[Tensor, "b g s k"],
        mask: Bool[Tensor, "#b #h #t s"] | None,
        causal: bool,
    ) -> Float[Tensor, "b h t k"]:
        """Returns the values mixed by attention weights; the only method that most blocks define.

        If `causal`, the queries are the last `t` of the `s` positions. Keys and values have `g`
        heads, which equals `h` except in `grouped_query`.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither mix nor forward")

    def mix_memory(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b g s k"],
        v: Float[Tensor, "b g s k"],
        mask: Bool[Tensor, "#b #h #t s"] | None,
    ) -> Float[Tensor, "b h t k"]:
        """Returns `mix` for a memory, whose positions have no distance from the queries."""
        return self.mix(q, k, v, mask, causal=False)
