"""Chunks of queries, for blocks that hold the scores of all queries and keys in memory."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LARGE = 2**26  # bytes of a (b h t s) tensor above which it is computed in chunks
CHUNK = 2**25  # bytes of such a tensor for the queries of one chunk


def queries_per_chunk(shape: tuple[int, ...], itemsize: int) -> int | None:
    """Returns the number of queries of a chunk, None if all are computed at once.

    Args:
        shape: (b, h, t, s) of the scores.
        itemsize: bytes of one score.
    """
    batch, heads, queries, keys = shape
    row = batch * heads * keys * itemsize
    if row * queries <= LARGE:
        return None
    return min(queries, max(1, CHUNK // row))


def query_chunks(queries: int, chunk: int) -> list[slice]:
    """Returns slices of at most `chunk` queries."""
    return [slice(start, min(start + chunk, queries)) for start in range(0, queries, chunk)]


def mask_of_queries(
    mask: Bool[Tensor, "#b #h #t s"] | None, rows: slice
) -> Bool[Tensor, "#b #h _ s"] | None:
    """Returns the mask of a chunk of queries."""
    return mask if mask is None or mask.shape[2] == 1 else mask[:, :, rows]


def autocast_inputs(*inputs: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], ...]:
    """Returns the inputs of a product of matrices in the dtype in which autocast computes it."""
    device = inputs[0].device.type
    if not torch.is_autocast_enabled(device):
        return inputs
    return tuple(x.to(torch.get_autocast_dtype(device)) for x in inputs)
