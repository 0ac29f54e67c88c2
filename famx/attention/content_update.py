"""Content decides whether keys and values are recomputed or reused (seed.md: should_update_key)."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from famx.attention.base import Attention, attend
from famx.nn.gating import straight_through
from famx.nn.masks import pool_weights
from famx.nn.state import Cache, append_to_cache
from famx.registry import register

HIDDEN = 64  # channels of the predictor


@register
class ContentUpdateAttention(Attention):
    """`attend(q, k, v)` with `k = u W_k x + (1 - u) k'`, k' the keys of the previous layer.

    Values likewise. `u = 1[sigmoid(MLP(pool(x))) > update_threshold]`, one for keys and one for
    values, with the gradient of the sigmoid (straight-through). If causal, `pool` is a running mean
    and each position has its own u; otherwise it is a mean over the sample, which has one u. In the
    first layer k' = 0.

    Args:
        update_threshold: probability above which keys or values are updated, in [0, 1).
    """

    connects_layers: ClassVar[bool] = True

    def __init__(self, *, update_threshold: float = 0.5, **context):
        super().__init__(**context)
        if not 0 <= update_threshold < 1:
            raise ValueError(f"update_threshold={update_threshold} is not in [0, 1)")
        self.update_threshold = update_threshold
        hidden = nn.Linear(self.d_model, HIDDEN)
        output = nn.Linear(HIDDEN, 2)
        self.predictor = nn.Sequential(hidden, nn.GELU(), output)
        # initially nearly all keys and values are updated, as in plain attention
        nn.init.constant_(output.bias, 2.0)

    def forward(self, x, memory=None, mask=None, state=None):
        """See `Block.forward`."""
        cache, offset = self.advance(state, x.shape[1])
        message = self.message(state, memory, offset)

        # keys and values of the chunk, or once of the memory
        if memory is None:
            k, v = self.update(x, self.pool(x, None, mask, cache), message)
            append_to_cache(cache, key=self.rotary(k, offset), value=v)
        elif "key" not in cache:
            reachable = None if mask is None else mask.any(-2, keepdim=True)
            pooled = pool_weights(reachable, memory.shape[1], x) @ memory
            k, v = self.update(memory, pooled, message)
            cache.update(key=self.rotary(k), value=v)

        # attention
        q = self.rotary(self.split_heads(self.query(x)), offset)
        y = attend(q, cache["key"], cache["value"], mask, self.causal and memory is None)
        if self.observed:
            updated = self.metrics["updated_k"] + self.metrics["updated_v"]
            self.metrics["flops"] = self.flops_per_position(updated, cache["key"].shape[-2])
        return self.merge(y)

    def update(
        self, x: Float[Tensor, "b s d"], pooled: Float[Tensor, "b _ d"], message: Cache
    ) -> tuple[Float[Tensor, "b h s k"], Float[Tensor, "b h s k"]]:
        """Returns keys before rotation, and values; the message passes them to the next layer."""
        # hard decisions, one for keys and one for values
        new_keys, new_values = self.key_value(x).chunk(2, dim=-1)
        need = self.predictor(pooled).sigmoid()
        update_keys, update_values = straight_through(need, self.update_threshold).split(1, dim=-1)
        # kept keys and values are those of the previous layer, 0 in the first layer
        if "keys" in message:
            keys = message["keys"] + update_keys * (new_keys - message["keys"])
            values = message["values"] + update_values * (new_values - message["values"])
        else:
            keys = update_keys * new_keys
            values = update_values * new_values
        message.update(keys=keys, values=values)
        if self.observed:
            last_updates = torch.cat((update_keys, update_values), dim=-1)[-1].detach()
            self.metrics = {
                "updated_k": update_keys.detach().mean(),
                "updated_v": update_values.detach().mean(),
                "over_time/updated": last_updates.T.expand(-1, x.shape[1]),
            }
        return self.split_heads(keys), self.split_heads(values)

    def flops_per_position(self, updated: Float[Tensor, ""], keys: int) -> Float[Tensor, ""]:
        """Returns the FLOPs of one position if reused keys and values are not computed.

        It counts the projections of queries and output, those of keys and values as often as they
        are updated, scores and mixing, but not the predictor.

        Args:
            updated: mean number of updates of a position, at most 2.
        """
        return 2 * self.d_model * (self.d_model * (2 + updated) + 2 * keys)
