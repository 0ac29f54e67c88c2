"""Masks: True for positions that are not padding, or that a query may attend to."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def length_mask(lengths: Int[Tensor, " b"], size: int) -> Bool[Tensor, "b {size}"]:
    """Returns True for the first `lengths[i]` of `size` positions in row i, False for padding."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def visible(
    mask: Bool[Tensor, "#b #h #t s"] | None,
    queries: int,
    keys: int,
    causal: bool,
    device: torch.device,
) -> Bool[Tensor, "#b #h #t s"] | None:
    """Returns `mask`, without the positions after each query if `causal`; None means everywhere.

    The queries are the last positions of the key sequence, so a chunk may attend to all positions
    that are cached before it.
    """
    # a single query is the last position, so no later ones exist
    if not causal or queries == 1:
        return mask
    past = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return past if mask is None else past & mask


def real_positions(
    mask: Bool[Tensor, "#b #h #t s"] | None, x: Float[Tensor, "b t _"]
) -> Float[Tensor, "b t 1"]:
    """Returns 1 for each position of `x`, or 0 for padding.

    A position is padding if no query of this self-attention may attend to its key. The positions of
    `x` are the last ones of the mask.
    """
    if mask is None:
        return torch.ones_like(x[..., :1])
    # keys of the chunk that some query of some head may attend to
    chunk_mask = mask[..., mask.shape[-1] - x.shape[1] :]
    real = chunk_mask.any(-2).any(1)[..., None]
    return real.to(x).expand(len(x), -1, -1)


def pool_weights(
    mask: Bool[Tensor, "_ _ _ s"] | None, keys: int, like: Float[Tensor, "b t d"]
) -> Float[Tensor, "_ _ {keys}"]:
    """Returns the weights of a mean over the keys that any head may attend to; all 0 if none.

    Args:
        like: a tensor that has the dtype and device of the weights.
    """
    if mask is None:
        # a plain mean
        return like.new_full((1, 1, keys), 1 / max(1, keys))
    weights = mask.any(1).to(like)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1)
