"""Attention within windows of learned width, in evaluation on a CPU (after arXiv:1905.07799)."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, threshold

ROWS = 64  # queries whose biases are computed at once
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
    """Returns `banded` with a `reach`.

    A logarithm takes longer than a product of a query and a key, so it is computed for the keys of
    the ramp alone. Keys and values are not copied.
    """
    batch, heads, t, _ = q.shape
    s = k.shape[-2]
    if not batch or not t:
        return q @ k.mT @ v

    # positions in the order of the output, so that joining the heads copies nothing; one buffer for
    # all biases, since an allocation takes longer than the operations on it
    y = q.new_empty(batch, t, heads, v.shape[-1]).transpose(1, 2)
    reach = reach.float()
    buffer = reach.new_empty(batch * heads * min(ROWS, t) * (s + 2))

    # some queries at a time, with slices of the keys
    for start in range(0, t, ROWS):
        stop = min(start + ROWS, t)
        first = max(0, s - t + start - window + 1)
        last = min(s, s - t + stop + (0 if causal else window - 1))
        query = torch.arange(s - t + start, s - t + stop, device=q.device)[:, None]
        part = _WindowBias(reach[:, :, start:stop], ramp, query, first, last, causal)
        bias = part.compute(buffer)
        if mask is not None:
            row_mask = mask if mask.shape[2] == 1 else mask[:, :, start:stop]
            bias.masked_fill_(~row_mask[..., first:last], -torch.inf)
        keys = k[:, :, first:last]
        values = v[:, :, first:last]
        queries = q[:, :, start:stop]
        y[:, :, start:stop] = scaled_dot_product_attention(queries, keys, values, bias.to(q))
    return y


class _WindowBias(NamedTuple):
    """`log m` of some queries for the keys from `first` up to `last`, -inf where m is 0.

    Args:
        query: positions of the queries.
    """

    reach: Float[Tensor, "b h t"]
    ramp: int
    query: Int[Tensor, "t 1"]
    first: int
    last: int
    causal: bool

    def compute(self, buffer: Float[Tensor, " n"]) -> Float[Tensor, "b h t keys"]:
        """Writes the bias into the buffer, and returns its part of the buffer."""
        # one more column on each side takes the ramp outside of the keys
        keys = torch.arange(self.first - 1, self.last + 1, device=self.query.device)
        distance = self.query - keys
        size = distance.abs().float()
        if self.causal:
            size = size.masked_fill_(distance < 0, torch.inf)
        shape = (*self.reach.shape, len(keys))
        bias = buffer[: math.prod(shape)].view(shape)
        # 0 up to the reach, -inf beyond; `where` with two numbers takes three times as long
        reach = self.reach[..., None]
        torch.sub(reach, size, out=bias)
        threshold(bias, -TINY, -torch.inf, inplace=True).clamp_(max=0)

        # distances above the reach, of which `ramp` ones can have a weight
        edge = reach.floor() + torch.arange(1, self.ramp + 1, device=reach.device)
        log_m = (reach / self.ramp + 1 - edge / self.ramp).clamp_(min=0).log_()
        column = (self.query - (self.first - 1)).float()
        bias.scatter_(-1, (column - edge).clamp_(0, len(keys) - 1).long(), log_m)
        if not self.causal:
            bias.scatter_(-1, (column + edge).clamp_(0, len(keys) - 1).long(), log_m)
        return bias[..., 1:-1]
