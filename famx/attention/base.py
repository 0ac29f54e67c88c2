"""What every attention block shares: into heads, rotate, remember, mix, out of heads."""

from collections.abc import Callable
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from famx.nn.masks import pool_weights, real_positions, visible
from famx.nn.state import append_to_cache, pool_source
from famx.notation import Kind


def attend(
    q: Float[Tensor, "b h t k"],
    k: Float[Tensor, "b h s k"],
    v: Float[Tensor, "b h s k"],
    mask: Bool[Tensor, "#b #h #t s"] | None,
    causal: bool,
) -> Float[Tensor, "b h t k"]:
    """`softmax(q k^T / sqrt(head_dim)) v` where queries may attend; one that may attend nowhere gets zeros."""
    t, s = q.shape[-2], k.shape[-2]
    if causal and mask is None and t == s:
        return scaled_dot_product_attention(q, k, v, is_causal=True)
    return scaled_dot_product_attention(q, k, v, visible(mask, t, s, causal, q.device))


@torch.no_grad()
def distances(
    mix: Callable[[Float[Tensor, "s 3"]], Float[Tensor, "h t 3"]],
    mask: Bool[Tensor, "#b #h #t s"] | None,
    queries: int,
    keys: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """How far each head looks, in positions: the root mean square, by its weights, of `i - j`; the metrics of it.

    The queries are the last ones of the keys' sequence. Padding and a query that sees no key have no distance: they are
    left out of the mean, and NaN in the picture.

    Args:
        mix: of the last sample, values mixed by the weights; zeros for a query that sees no key.
    """
    places = torch.arange(keys, device=device, dtype=torch.float32) - keys / 2
    with torch.autocast(
        device.type, enabled=False
    ):  # would round the squares, of which little is left
        total, mean, square = mix(
            torch.stack((torch.ones_like(places), places, places.square()), -1)
        ).unbind(-1)
    here, real = (
        places[keys - queries :],
        real_positions(mask if mask is None else mask[-1:], total.mT[None])[0, :, 0],
    )
    far, shown = (
        (here.square() - 2 * here * mean + square).clamp(min=0).sqrt(),
        (total > 0.5) & (real > 0),
    )
    average = (far * shown).sum(-1) / shown.sum(-1).clamp(min=1)
    return {"distance": average, "over_time/distance": far.where(shown, torch.nan)}


class Block(nn.Module):
    """What every attention block is: the sizes, the heads, and what it shows. Calls are as in `Attention.forward`.

    Nothing adds `x` itself: the result is what a layer adds to it.

    Args:
        d_model: channels of `x` and of the memory.
        n_heads: heads, each of `d_model / n_heads` channels.
        rotary: turns queries and keys by their positions.
        causal: in self-attention, no position sees a later one. A memory of its own is seen whole in any case.
    """

    kind: ClassVar[Kind] = "attention"
    connects_layers: ClassVar[bool] = (
        False  # talks to the blocks of other layers, through the state
    )
    observed = False

    def __init__(self, d_model: int, n_heads: int, rotary: nn.Module, causal: bool = False):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model={d_model} is not a multiple of n_heads={n_heads}")
        self.n_heads, self.rotary, self.causal = n_heads, rotary, causal
        self.metrics: dict[str, Tensor] = {}

    def heads(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b h t k"]:
        return rearrange(x, "b t (h k) -> b h t k", h=self.n_heads)

    def cache(self, state: dict | None, seq_len: int) -> tuple[dict, int]:
        """This block's own entry of the state, and the position where the `seq_len` new ones begin.

        The state of one `whole` pass is there for connected blocks alone: nobody comes back to what a block would keep.
        """
        cache = {} if state is None or "whole" in state else state.setdefault(self, {})
        offset = cache.get("length", 0)
        cache["length"] = offset + seq_len
        return cache, offset

    def shared(self, state: dict | None, memory: Float[Tensor, "b s d"] | None, place: int) -> dict:
        """What the layer before left for blocks of this type at the same place, to be replaced for the next layer.

        Attention to a memory has an entry of its own beside that of self-attention.
        """
        entry = {} if state is None else state.setdefault((type(self), memory is None), {})
        if entry.get("place") != place:
            entry.clear()
            entry["place"] = place
        return entry

    def pool(
        self,
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"] | None,
        mask: Bool[Tensor, "#b #h #t s"] | None,
        cache: dict,
    ) -> Float[Tensor, "b _ d"]:
        """Mean of all that a position may attend to: one for the sample where all see the same, else one for each."""
        pooled = pool_source("pooled", x, memory, cache)
        causal, keys = self.causal and memory is None, pooled.shape[1]
        return pool_weights(visible(mask, x.shape[1], keys, causal, x.device), keys, x) @ pooled


class Attention(Block):
    """`out(mix(R q, R k, v))` with `q = W_q x`, `k, v = W_kv memory`. A block of this kind is a `mix`."""

    def __init__(self, d_model: int, n_heads: int, rotary: nn.Module, causal: bool = False):
        super().__init__(d_model, n_heads, rotary, causal)
        self.query = nn.Linear(d_model, d_model)
        self.key_value = nn.Linear(d_model, 2 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"] | None = None,
        mask: Bool[Tensor, "#b #h #t s"] | None = None,
        state: dict | None = None,
    ) -> Float[Tensor, "b t d"]:
        """Attends from `x` to `memory` (to itself when None) where `mask` is True (everywhere when None).

        Args:
            state: of one sequence, kept between calls: then `x` is the next chunk of it, the keys of the chunks
                before are remembered, and `mask` covers those too. The memory must stay the same.
        """
        q, k, v = self.project(x, memory, state)
        if memory is None:
            return self.merge(self.mix(q, k, v, mask, self.causal))
        return self.merge(self.mix_memory(q, k, v, mask))

    def project(
        self, x: Float[Tensor, "b t d"], memory: Float[Tensor, "b s d"] | None, state: dict | None
    ) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "b g s2 k"], Float[Tensor, "b g s2 k"]]:
        """Queries of `x`, and keys and values of all that they may attend to."""
        cache, offset = self.cache(state, x.shape[1])
        if memory is None:
            append_to_cache(cache, **self.keys_values(x, offset))
        elif "key" not in cache:
            cache |= self.keys_values(memory)
        return self.rotary(self.heads(self.query(x)), offset), cache["key"], cache["value"]

    def merge(self, y: Float[Tensor, "b h t k"]) -> Float[Tensor, "b t d"]:
        return self.out(rearrange(y, "b h t k -> b t (h k)"))

    def keys_values(self, x: Float[Tensor, "b s d"], offset: int = 0) -> dict[str, Tensor]:
        k, v = self.key_value(x).chunk(2, dim=-1)
        return {"key": self.rotary(self.heads(k), offset), "value": self.heads(v)}

    def mix(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b h s k"],
        v: Float[Tensor, "b h s k"],
        mask: Bool[Tensor, "#b #h #t s"] | None,
        causal: bool,
    ) -> Float[Tensor, "b h t k"]:
        """Values mixed by weights. While `causal`, the queries are the last `t` of the `s` positions."""
        raise NotImplementedError

    def mix_memory(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b g s k"],
        v: Float[Tensor, "b g s k"],
        mask: Bool[Tensor, "#b #h #t s"] | None,
    ) -> Float[Tensor, "b h t k"]:
        """As `mix`, for a memory: its positions have no distance from those of the queries."""
        return self.mix(q, k, v, mask, causal=False)
