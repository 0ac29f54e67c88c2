"""Running means over the positions of a sequence, without a matrix of (queries, keys)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


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
