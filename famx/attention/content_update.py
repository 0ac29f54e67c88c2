"""Content decides whether keys and values are new, or the layer before's (seed.md: should_update_key)."""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from famx.attention.base import Attention, attend
from famx.nn.gating import straight_through
from famx.nn.masks import pool_weights
from famx.nn.state import append_to_cache
from famx.registry import register

PREDICTOR = 64  # hidden channels


@register
class ContentUpdateAttention(Attention):
    """`attend(q, k, v)` with `k = u W_k x + (1 - u) k'` and k' the keys of the layer before; values in the same way.

    `u = 1[sigmoid(MLP(pool(x))) > update_threshold]`, one for keys and one for values, with the gradient of the sigmoid
    (straight-through). Causal, `pool` is a running mean and every position updates for itself; else a mean over the
    sample, which updates as one. The first layer has nothing before it, so there k' = 0.

    Args:
        update_threshold: of the predicted need for an update, in [0, 1).
    """

    connects_layers: ClassVar[bool] = True

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        rotary: nn.Module,
        causal: bool = False,
        *,
        update_threshold: float = 0.5,
    ):
        super().__init__(d_model, n_heads, rotary, causal)
        if not 0 <= update_threshold < 1:
            raise ValueError(f"update_threshold={update_threshold} is not in [0, 1)")
        self.update_threshold = update_threshold
        self.predictor = nn.Sequential(
            nn.Linear(d_model, PREDICTOR), nn.GELU(), nn.Linear(PREDICTOR, 2)
        )
        # at first nearly all is new, as in plain attention
        nn.init.constant_(self.predictor[-1].bias, 2.0)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"] | None = None,
        mask: Bool[Tensor, "#b #h #t s"] | None = None,
        state: dict | None = None,
    ) -> Float[Tensor, "b t d"]:
        """See `Attention.forward`."""
        cache, offset = self.cache(state, x.shape[1])
        shared = self.shared(state, memory, offset)
        if memory is None:
            k, v = self.updated(x, self.pool(x, None, mask, cache), shared)
            append_to_cache(cache, key=self.rotary(k, offset), value=v)
        elif "key" not in cache:
            reached = mask if mask is None else mask.any(-2, keepdim=True)
            k, v = self.updated(memory, pool_weights(reached, memory.shape[1], x) @ memory, shared)
            cache |= {"key": self.rotary(k), "value": v}
        q = self.rotary(self.heads(self.query(x)), offset)
        y = attend(q, cache["key"], cache["value"], mask, self.causal and memory is None)
        if self.observed:
            d_model, new = x.shape[-1], self.metrics["updated_k"] + self.metrics["updated_v"]
            self.metrics["flops"] = 2 * d_model * (d_model * (2 + new) + 2 * cache["key"].shape[-2])
        return self.merge(y)

    def updated(
        self, x: Float[Tensor, "b s d"], pooled: Float[Tensor, "b _ d"], shared: dict
    ) -> tuple[Float[Tensor, "b h s k"], Float[Tensor, "b h s k"]]:
        """Keys, before rotation, and values, which the next layer finds in `shared`."""
        new = self.key_value(x).chunk(2, dim=-1)
        update = straight_through(self.predictor(pooled).sigmoid(), self.update_threshold).split(
            1, dim=-1
        )
        if "before" not in shared:
            kept = [u * n for u, n in zip(update, new, strict=True)]
        else:
            kept = [b + u * (n - b) for u, n, b in zip(update, new, shared["before"], strict=True)]
        shared["before"] = kept
        if self.observed:
            self.metrics = {
                f"updated_{name}": u.detach().mean()
                for name, u in zip(("k", "v"), update, strict=True)
            }
            both = torch.cat(update, dim=-1)[-1].detach()
            self.metrics["over_time/updated"] = both.T.expand(-1, x.shape[1])
        return self.heads(kept[0]), self.heads(kept[1])
