"""Attention within windows of learned width, in evaluation on a CPU (after arXiv:1905.07799)."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import max_pool1d, scaled_dot_product_attention, threshold

FEW_ROWS = 64  # queries of a chunk whose keys are part of the sequence
MANY_ROWS = 192  # queries of a chunk that attends to all keys; torch's kernel is faster with more
CACHE = 2**22  # bytes of the keys and values of the samples of a chunk, for a cache of a few MB
TINY = 1e-30  # less than the difference of two numbers of which one is a distance


def shortest_and_longest(reach: Float[Tensor, "b h t"]) -> tuple[float, float]:
    """Returns the extremes of the reach, 0 and inf if they are not finite. It reads the reach."""
    if not reach.numel():
        return 0.0, 0.0
    shortest, longest = torch.stack(reach.aminmax()).tolist()
    return (shortest, longest) if math.isfinite(longest - shortest) else (0.0, math.inf)


def attend_soft_window(
    q: Float[Tensor, "b h t k"],
    k: Float[Tensor, "b h s k"],
    v: Float[Tensor, "b h s v"],
    window: int,
    mask: Bool[Tensor, "#b #h #t s"] | None,
    causal: bool,
    reach: Float[Tensor, "b h t"],
    ramp: int,
) -> Float[Tensor, "b h t v"]:
    """Returns `banded` with a finite `reach`, in chunks of samples and queries.

    A chunk attends to the slice of the keys within its longest reach, and without a bias if its
    shortest reach includes all of them. Keys and values are not copied.
    """
    batch, heads, t, _ = q.shape
    s = k.shape[-2]
    if not batch or not t:
        return q @ k.mT @ v

    # few queries share a narrow slice; with a wide one, a chunk of few queries saves nothing
    is_narrow = causal or FEW_ROWS + 2 * window <= s
    rows = min(t, FEW_ROWS if is_narrow else MANY_ROWS)
    samples = min(batch, max(1, CACHE // (2 * k[0].numel() * k.element_size())))

    # positions in the order of the output, so that joining the heads copies nothing; one buffer for
    # all biases, since an allocation takes longer than the operations on it
    y = q.new_empty(batch, t, heads, v.shape[-1]).transpose(1, 2)
    buffer = q.new_empty(samples, heads, rows, s + 2, dtype=torch.float32)
    for start in range(0, batch, samples):
        part = slice(start, min(start + samples, batch))
        part_mask = mask if mask is None or len(mask) == 1 else mask[part]
        bias = _WindowBias.of(reach[part].float(), ramp, s, causal, buffer)
        for chunk in _chunks(reach[part], rows, ramp, s, causal):
            chunk_bias = bias.of_chunk(chunk, part_mask)
            y[part, :, chunk.queries] = scaled_dot_product_attention(
                q[part, :, chunk.queries],
                k[part, :, chunk.keys],
                v[part, :, chunk.keys],
                None if chunk_bias is None else chunk_bias.to(q),
            )
    return y


class _Chunk(NamedTuple):
    """Some queries, and the slice of the keys in their windows.

    Args:
        is_full: whether all keys of the slice have their full weight for all queries.
    """

    queries: slice
    keys: slice
    is_full: bool


def _chunks(
    reach: Float[Tensor, "b h t"], rows: int, ramp: int, s: int, causal: bool
) -> list[_Chunk]:
    """Returns chunks of `rows` queries. It reads the reach."""
    t = reach.shape[-1]
    extremes = torch.cat((reach, -reach)).float()
    longest, shortest = (
        max_pool1d(extremes, rows, ceil_mode=True).unflatten(0, (2, -1)).amax((1, 2))
    )
    chunks = []
    for i, (far, near) in enumerate(zip(longest.tolist(), shortest.neg().tolist(), strict=True)):
        start = i * rows
        stop = min(start + rows, t)
        # positions in the key sequence, of which the queries are the last ones
        first_query = s - t + start
        last_query = s - t + stop - 1
        width = math.ceil(far) + ramp
        first = max(0, first_query - width + 1)
        last = last_query if causal else min(s - 1, last_query + width - 1)
        is_full = not causal and near >= max(last_query - first, last - first_query)
        chunks.append(_Chunk(slice(start, stop), slice(first, last + 1), is_full))
    return chunks


class _WindowBias(NamedTuple):
    """`log m` of some samples, -inf where m is 0.

    A logarithm takes longer than all else, so it is computed for the keys of the ramp alone.

    Args:
        reach: in positions.
        position: of each column of the buffer in the key sequence.
        log_m: of the `ramp` nearest distances above the reach.
        before: for each of them the column of the buffer of the earlier key.
        after: the same of the later key; None if causal.
        buffer: for the biases of one chunk; it has a column for each key and one more at each end,
            which take what is outside of the sequence.
    """

    reach: Float[Tensor, "b h t 1"]
    position: Float[Tensor, " columns"]
    log_m: Float[Tensor, "b h t ramp"]
    before: Int[Tensor, "b h t ramp"]
    after: Int[Tensor, "b h t ramp"] | None
    buffer: Float[Tensor, "_ h rows columns"]

    @classmethod
    def of(
        cls,
        reach: Float[Tensor, "b h t"],
        ramp: int,
        s: int,
        causal: bool,
        buffer: Float[Tensor, "_ h rows columns"],
    ) -> "_WindowBias":
        """Computes the ramps of all queries."""
        reach = reach[..., None]
        edge = reach.floor()
        steps = torch.arange(1, ramp + 1, device=reach.device)
        # in the order of `banded`, for the same rounding
        log_m = (reach / ramp + 1 - (edge + steps) / ramp).clamp_(min=0).log_()
        # columns, of which the first one is before the first key
        query = torch.arange(s - reach.shape[-2], s, device=reach.device)[:, None]
        edge = edge.long()
        before = (query + 1 - edge - steps).clamp_(min=0)
        after = None if causal else (query + 1 + edge + steps).clamp_(max=s + 1)
        position = torch.arange(-1.0, s + 1, device=reach.device)
        return cls(reach, position, log_m, before, after, buffer)

    def of_chunk(
        self, chunk: _Chunk, mask: Bool[Tensor, "#b #h #t s"] | None
    ) -> Float[Tensor, "_ h _ _"] | None:
        """Writes the bias of a chunk into the buffer, and returns it; None if all are 0."""
        rows = chunk.queries
        row_mask = mask if mask is None or mask.shape[2] == 1 else mask[:, :, rows]
        if chunk.is_full and mask is None:
            return None
        # distances of the keys, and of one more column on each side
        columns = slice(chunk.keys.start, chunk.keys.stop + 2)
        first_query = len(self.position) - 1 - self.reach.shape[2]
        query = self.position[first_query:][rows, None]
        distance = query - self.position[columns]
        if self.after is None:
            distance.masked_fill_(distance < 0, torch.inf)
        else:
            distance.abs_()

        # 0 up to the reach, -inf beyond; `where` with two numbers takes three times as long
        reach = self.reach[:, :, rows]
        buffer = self.buffer[: len(reach), :, : len(query)]
        bias = buffer[..., columns]
        torch.sub(reach, distance, out=bias)
        threshold(bias, -TINY, -torch.inf, inplace=True).clamp_(max=0)

        # the ramp is within the window of the chunk, or outside of the sequence
        buffer.scatter_(-1, self.before[:, :, rows], self.log_m[:, :, rows])
        if self.after is not None:
            buffer.scatter_(-1, self.after[:, :, rows], self.log_m[:, :, rows])
        bias = bias[..., 1:-1]
        return (
            bias if row_mask is None else bias.masked_fill_(~row_mask[..., chunk.keys], -torch.inf)
        )
