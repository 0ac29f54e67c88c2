"""Content decides whether keys and values are recomputed or reused (seed.md: should_update_key)."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from famx.attention.base import Attention, attend
from famx.nn.gating import select_open, skips_closed, straight_through
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
            # all queries share its keys, so positions that any query may not see decide nothing
            visible_to_all = None if mask is None else mask.all(-2, keepdim=True)
            pooled = pool_weights(visible_to_all, memory.shape[1], x) @ memory
            k, v = self.update(memory, pooled, message)
            cache.update(key=self.rotary(k), value=v)

        if self.observed:
            updated = self.metrics["updated_k"] + self.metrics["updated_v"]
            self.metrics["flops"] = self.flops_per_position(updated, cache["key"].shape[-2])

        # attention; values that no layer has updated are 0, and so is their mean
        incremental = state is not None and state.incremental
        if memory is None and "values" not in message and not incremental:
            return torch.zeros_like(x) + self.out.bias
        q = self.rotary(self.split_heads(self.query(x)), offset)
        y = attend(q, cache["key"], cache["value"], mask, self.causal and memory is None)
        return self.merge(y)

    def update(
        self, x: Float[Tensor, "b s d"], pooled: Float[Tensor, "b _ d"], message: Cache
    ) -> tuple[Float[Tensor, "b h s k"], Float[Tensor, "b h s k"]]:
        """Returns keys before rotation, and values; the message passes them to the next layer."""
        # hard decisions, one for keys and one for values
        new = None if skips_closed(self, x) else self.key_value(x)
        need = self.predictor(pooled).sigmoid()
        update_keys, update_values = straight_through(need, self.update_threshold).split(1, dim=-1)
        # those that are not updated are those of the previous layer
        if new is None:
            keys = self.update_selected(x, 0, update_keys, message.get("keys"))
            values = self.update_selected(x, 1, update_values, message.get("values"))
        else:
            new_keys, new_values = new.chunk(2, dim=-1)
            keys = updated(new_keys, update_keys, message.get("keys"))
            values = updated(new_values, update_values, message.get("values"))
        # without an entry, the next layer finds 0 too
        for name, states in (("keys", keys), ("values", values)):
            if states is not None:
                message[name] = states
        if self.observed:
            last_updates = torch.cat((update_keys, update_values), dim=-1)[-1].detach()
            self.metrics = {
                "updated_k": update_keys.detach().mean(),
                "updated_v": update_values.detach().mean(),
                "over_time/updated": last_updates.T.expand(-1, x.shape[1]),
            }
        keys = torch.zeros_like(x) if keys is None else keys
        values = torch.zeros_like(x) if values is None else values
        return self.split_heads(keys), self.split_heads(values)

    def update_selected(
        self,
        x: Float[Tensor, "b s d"],
        part: int,
        update: Float[Tensor, "b _ 1"],
        previous: Float[Tensor, "b s d"] | None,
    ) -> Float[Tensor, "b s d"] | None:
        """Returns keys or values, of which only those that are updated are computed; None for 0.

        Args:
            part: 0 for keys, 1 for values.
            previous: those of the previous layer; None for 0.
        """
        weight = self.key_value.weight.chunk(2)[part]
        bias = self.key_value.bias.chunk(2)[part]
        selection = select_open(update[..., 0] > 0)
        if selection is None:
            return updated(linear(x, weight, bias), update, previous)
        if selection.is_empty:
            return previous
        reused = torch.zeros_like(x) if previous is None else previous
        # one decision for all positions of a sample
        if update.shape[1] < x.shape[1]:
            new = linear(selection.take_rows(x), weight, bias)
            return reused.index_copy(0, selection.rows, new.to(reused))
        # one decision for each position; rows with fewer updates are filled up with others
        new = linear(selection.take(x), weight, bias)
        new = torch.where(selection.take(update) > 0, new, selection.take(reused))
        return selection.put(reused, new)

    def flops_per_position(self, updated: Float[Tensor, ""], keys: int) -> Float[Tensor, ""]:
        """Returns the FLOPs of one position if reused keys and values are not computed.

        It counts the projections of queries and output, those of keys and values as often as they
        are updated, scores and mixing, but not the predictor.

        Args:
            updated: mean number of updates of a position, at most 2.
        """
        return 2 * self.d_model * (self.d_model * (2 + updated) + 2 * keys)


def updated(
    new: Float[Tensor, "b s d"],
    update: Float[Tensor, "b _ 1"],
    previous: Float[Tensor, "b s d"] | None,
) -> Float[Tensor, "b s d"]:
    """Returns the new ones where `update` is 1, else those of the previous layer, 0 if None."""
    return update * new if previous is None else previous + update * (new - previous)
