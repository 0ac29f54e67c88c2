"""Attention masks: which positions may be attended to."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def visible(
    mask: Bool[Tensor, "#b #h #t s"] | None,
    queries: int,
    keys: int,
    causal: bool,
    device: torch.device,
) -> Bool[Tensor, "#b #h #t s"] | None:
    """Where queries may attend, or None for everywhere: `mask`, and while `causal` nothing after themselves.

    The queries are the last ones of the keys' sequence, so that a chunk sees what is cached before it.
    """
    if not causal or queries == 1:
        return mask
    past = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return past if mask is None else past & mask


def real_positions(
    mask: Bool[Tensor, "#b #h #t s"] | None, x: Float[Tensor, "b t _"]
) -> Float[Tensor, "b t 1"]:
    """1 for each position of `x`, 0 for padding: no query of this self-attention may attend to its key."""
    if mask is None:
        return torch.ones_like(x[..., :1])
    return (
        mask[..., mask.shape[-1] - x.shape[1] :]
        .any(-2)
        .any(1)[..., None]
        .to(x)
        .expand(len(x), -1, -1)
    )


def pool_weights(
    seen: Bool[Tensor, "_ _ _ s"] | None, keys: int, like: Float[Tensor, "b t d"]
) -> Float[Tensor, "_ _ {keys}"]:
    """Weights of a mean over the places where any head may attend; all 0 where there is none."""
    if seen is None:
        return like.new_full((1, 1, keys), 1 / max(1, keys))
    seen = seen.any(1).to(like)
    return seen / seen.sum(-1, keepdim=True).clamp(min=1)
