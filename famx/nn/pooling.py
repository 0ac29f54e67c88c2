"""Means over the positions of a sequence: of all of it, and up to each position."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from famx.nn.masks import length_mask


def sequence_mean(x: Float[Tensor, "b t d"], lengths: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
    """Returns the mean over the first `lengths[i]` positions of each row, in 32 bits or more."""
    wide = torch.promote_types(x.dtype, torch.float32)
    # padding may hold anything, also what is not finite
    real = x.to(wide).masked_fill(~length_mask(lengths, x.shape[1])[..., None], 0.0)
    return real.sum(1) / lengths[:, None]


def running_mean(
    source: Float[Tensor, "b s d"], mask: Bool[Tensor, "#b s 1"] | None, queries: int
) -> Float[Tensor, "b {queries} d"]:
    """Returns the mean over the positions up to each of the last `queries` ones; 0 over none.

    It takes time O(s), and differs by rounding from a product with a matrix of weights.

    Args:
        mask: True for the positions that count; None for all.
    """
    start = source.shape[1] - queries
    wide = torch.promote_types(source.dtype, torch.float32)
    if mask is None:
        total = source.cumsum(1, dtype=wide)[:, start:]
        count = torch.arange(start + 1, source.shape[1] + 1, device=source.device)[:, None]
        return (total / count).to(source)
    total = (source * mask).cumsum(1, dtype=wide)[:, start:]
    count = mask.cumsum(1)[:, start:].clamp(min=1)
    return (total / count).to(source)
