"""Means and sums over the positions of a sequence: of all of it, and up to each position."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from famx.nn.masks import length_mask

PART = 16  # positions that are added one after the other
SMALL = 2**16  # entries below which torch's cumulative sum is faster


def sequence_mean(x: Float[Tensor, "b t d"], lengths: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
    """Returns the mean over the first `lengths[i]` positions of each row, in 32 bits or more."""
    wide = torch.promote_types(x.dtype, torch.float32)
    # padding may hold anything, also what is not finite
    real = x.to(wide).masked_fill(~length_mask(lengths, x.shape[1])[..., None], 0.0)
    return real.sum(1) / lengths[:, None]


def centered(x: Float[Tensor, "b t d"], lengths: Int[Tensor, " b"]) -> Float[Tensor, "b t d"]:
    """Returns the first `lengths[i]` positions of each row minus their mean, and 0 after them."""
    padding = ~length_mask(lengths, x.shape[1])[..., None]
    return (x - sequence_mean(x, lengths)[:, None].to(x)).masked_fill(padding, 0.0)


def sequence_logsumexp(
    x: Float[Tensor, "b t d"], lengths: Int[Tensor, " b"]
) -> Float[Tensor, "b d"]:
    """Returns log sum exp over the first `lengths[i]` positions of each row, in 32 bits or more."""
    wide = torch.promote_types(x.dtype, torch.float32)
    padding = ~length_mask(lengths, x.shape[1])[..., None]
    return x.to(wide).masked_fill(padding, -torch.inf).logsumexp(1)


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
        total = prefix_sum(source, wide)[:, start:]
        count = torch.arange(start + 1, source.shape[1] + 1, device=source.device)[:, None]
        return total.div_(count).to(source)
    total = prefix_sum(source * mask, wide)[:, start:]
    count = mask.cumsum(1)[:, start:].clamp(min=1)
    return total.div_(count).to(source)


def prefix_sum(x: Float[Tensor, "b s d"], dtype: torch.dtype) -> Float[Tensor, "b s d"]:
    """Returns the sum over the positions up to each one.

    On a CPU, `cumsum` over an axis other than the last one takes the time of 15 additions. Large
    inputs are cut into parts, whose sums are added; the result differs by rounding.
    """
    if x.device.type != "cpu" or x.numel() < SMALL:
        return x.cumsum(1, dtype=dtype)
    total = x.to(dtype, copy=True)
    s = x.shape[1]
    in_parts = s - s % PART
    by_part = total[:, :in_parts].unflatten(1, (-1, PART))
    for i in range(1, PART):
        by_part[:, :, i] += by_part[:, :, i - 1]
    by_part[:, 1:] += by_part[:, :-1, -1:].cumsum(1)
    # the positions after the last part
    for i in range(max(1, in_parts), s):
        total[:, i] += total[:, i - 1]
    return total
