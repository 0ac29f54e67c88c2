"""Attention within windows of learned width, in evaluation on a CPU (after arXiv:1905.07799)."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, threshold

ROWS = 64  # queries whose biases are computed at once
TINY = 1e-30  # less than the difference of two numbers of which one is a distance


class _Ramp(NamedTuple):
    """Keys whose weight is reduced, for each query: their positions and the logarithms of `m`."""

    positions: Int[Tensor, "b h t r"]
    bias: Float[Tensor, "b h t r"]


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
    t = q.shape[-2]
    s = k.shape[-2]
    if not q.shape[0] or not t:
        return q @ k.mT @ v
    edges = _ramp_biases(reach, ramp, s - t, causal)

    # some queries at a time, with slices of the keys
    outputs = []
    for start in range(0, t, ROWS):
        stop = min(start + ROWS, t)
        first = max(0, s - t + start - window + 1)
        last = min(s, s - t + stop + (0 if causal else window - 1))
        part = _Ramp(*(values[:, :, start:stop] for values in edges))
        bias = _window_bias(reach[:, :, start:stop], part, s - t + start, first, last, causal)
        if mask is not None:
            row_mask = mask if mask.shape[2] == 1 else mask[:, :, start:stop]
            bias = bias.masked_fill(~row_mask[..., first:last], -torch.inf)
        keys = k[:, :, first:last]
        values = v[:, :, first:last]
        outputs.append(scaled_dot_product_attention(q[:, :, start:stop], keys, values, bias.to(q)))
    return torch.cat(outputs, dim=2)


def _ramp_biases(reach: Float[Tensor, "b h t"], ramp: int, offset: int, causal: bool) -> _Ramp:
    """Returns the positions on the ramps of each query, and `log m` there.

    Args:
        offset: position of the first query.
    """
    # whole distances above the reach, of which `ramp` ones can have a weight
    reach = reach.float()[..., None]
    distance = reach.floor() + torch.arange(1, ramp + 1, device=reach.device)
    bias = (reach / ramp + 1 - distance / ramp).clamp_(min=0).log_()
    query = torch.arange(offset, offset + reach.shape[2], device=reach.device)[:, None]
    before = query - distance.long()
    if causal:
        return _Ramp(before, bias)
    after = query + distance.long()
    return _Ramp(torch.cat((before, after), -1), torch.cat((bias, bias), -1))


def _window_bias(
    reach: Float[Tensor, "b h t"],
    edges: _Ramp,
    offset: int,
    first: int,
    last: int,
    causal: bool,
) -> Float[Tensor, "b h t keys"]:
    """Returns `log m` for the keys from `first` up to `last`, -inf where m is 0.

    Args:
        offset: position of the first query.
    """
    # one more column on each side takes the ramp outside of the keys
    query = torch.arange(offset, offset + reach.shape[2], device=reach.device)[:, None]
    distance = query - torch.arange(first - 1, last + 1, device=reach.device)
    size = distance.abs().float()
    if causal:
        size = size.masked_fill(distance < 0, torch.inf)
    # 0 up to the reach, -inf beyond; `where` with two numbers takes three times as long
    difference = reach.float()[..., None] - size
    bias = threshold(difference, -TINY, -torch.inf, inplace=True).clamp_(max=0)
    columns = (edges.positions - (first - 1)).clamp_(0, last - first + 1)
    bias.scatter_(-1, columns, edges.bias)
    return bias[..., 1:-1]
