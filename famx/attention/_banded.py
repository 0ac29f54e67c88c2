"""Attention within a window, in time and memory O(t * window) (seed.md: slide_win)."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

BLOCK = 64  # queries per block, which share BLOCK + window - 1 keys


class _Blocks(NamedTuple):
    """Geometry of the blocks.

    Args:
        size: queries per block.
        span: keys per block.
        missing: queries to add, so that all blocks are full.
        margins: keys to add before and after; a negative margin crops keys that no query reaches.
    """

    size: int
    span: int
    missing: int
    margins: tuple[int, int]


def banded(
    q: Float[Tensor, "b h t k"],
    k: Float[Tensor, "b h s k"],
    v: Float[Tensor, "b h s v"],
    window: int,
    mask: Bool[Tensor, "#b #h #t s"] | None,
    causal: bool,
    reach: Float[Tensor, "b h t"] | None = None,
    ramp: int = 1,
) -> Float[Tensor, "b h t v"]:
    """Returns `softmax(q k^T / sqrt(head_dim) + log m) v` over the keys less than `window` away.

    The queries are the last positions of the key sequence. `m` is 1, or with a `reach` it falls
    gradually with the distance: `m = clamp((reach + ramp - distance) / ramp, 0, 1)`. A query that
    may attend to no key gets zeros.

    Args:
        window: width in positions, at least 1; with 1, a query attends only to itself.
        mask: True where a query may attend.
        reach: for each query, the distance in positions up to which keys have their full weight.
        ramp: positions over which the weight then falls to 0.
    """
    batch, _, t, _ = q.shape
    if not batch or not t:
        return q @ k.mT @ v
    s = k.shape[-2]
    window = min(window, s)

    # the keys of a block begin window - 1 before its first query
    size = min(BLOCK, t)
    ahead = 0 if causal else window - 1
    missing = -t % size
    margins = (window - 1 - (s - t), ahead + missing)
    blocks = _Blocks(size, size + window - 1 + ahead, missing, margins)

    # keys of its block that each query attends to
    query_positions = torch.arange(size, device=q.device)[:, None] + window - 1
    distance = query_positions - torch.arange(blocks.span, device=q.device)
    near = (distance < window) & (distance > (-1 if causal else -window))
    if mask is None:
        mask = q.new_ones(1, 1, 1, s, dtype=torch.bool)
    bias = near & _diagonal_blocks(mask, blocks)
    if reach is not None:
        bias = _soft_bias(reach, ramp, distance, bias, blocks).to(q)

    # attention inside each block
    q = _fold(_query_blocks(q, blocks), batch)
    k = _fold(_Overlapping.apply(k, margins, blocks.span, size), batch)
    v = _fold(_Overlapping.apply(v, margins, blocks.span, size), batch)
    y = scaled_dot_product_attention(q, k, v, _fold(bias, batch))
    y = y.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)
    return y[:, :, :t] if missing else y


class _Overlapping(torch.autograd.Function):
    """Cuts padded positions into windows of `span`, one every `size`, as `unfold` does.

    Its gradient is faster than that of `unfold`.
    """

    @staticmethod
    def forward(
        ctx, x: Float[Tensor, "b h s k"], margins: tuple[int, int], span: int, size: int
    ) -> Float[Tensor, "b h blocks {span} k"]:
        padded = pad(x, (0, 0, *margins))
        ctx.shape = padded.shape
        ctx.margins = margins
        ctx.size = size
        return padded.unfold(-2, span, size).mT

    @staticmethod
    def backward(
        ctx, grad: Float[Tensor, "b h blocks span k"]
    ) -> tuple[Float[Tensor, "b h s k"], None, None, None]:
        total = grad.new_zeros(ctx.shape)
        last_start = (grad.shape[2] - 1) * ctx.size
        # windows overlap, but their i-th parts of `size` positions do not
        for i, part in enumerate(grad.split(ctx.size, dim=-2)):
            start = i * ctx.size
            width = part.shape[-2]
            target = total[..., start : start + last_start + width, :]
            target.unfold(-2, width, ctx.size).mT.add_(part)
        margin_before, margin_after = ctx.margins
        return pad(total, (0, 0, -margin_before, -margin_after)), None, None, None


def _fold(x: Shaped[Tensor, "#b h blocks t k"], batch: int) -> Shaped[Tensor, "b_blocks h t k"]:
    """Moves the blocks into the batch axis, so that heads may share a mask."""
    return x.transpose(1, 2).expand(batch, *[-1] * 4).flatten(0, 1)


def _query_blocks(x: Float[Tensor, "b h t k"], blocks: _Blocks) -> Float[Tensor, "b h blocks _ k"]:
    # padding by 0 would copy
    padded = pad(x, (0, 0, 0, blocks.missing)) if blocks.missing else x
    return padded.unflatten(-2, (-1, blocks.size))


def _diagonal_blocks(
    mask: Bool[Tensor, "#b #h #t s"], blocks: _Blocks
) -> Bool[Tensor, "#b #h blocks #size span"]:
    """Cuts the blocks along the diagonal out of a mask, False outside of the sequence."""
    if mask.shape[-2] == 1:
        return pad(mask, blocks.margins).unfold(-1, blocks.span, blocks.size).transpose(-2, -3)
    padded = pad(mask, (*blocks.margins, 0, blocks.missing))
    strips = padded.unfold(-2, blocks.size, blocks.size)
    return strips.unfold(-2, blocks.span, blocks.size).diagonal(dim1=2, dim2=3).movedim(-1, 2)


def _soft_bias(
    reach: Float[Tensor, "b h t"],
    ramp: int,
    distance: Int[Tensor, "size span"],
    near: Bool[Tensor, "#b #h blocks _ span"],
    blocks: _Blocks,
) -> Float[Tensor, "b h blocks size span"]:
    """Returns `log m`, -inf where `near` is False."""
    scaled_reach = _query_blocks(reach[..., None].float() / ramp + 1, blocks)
    m = scaled_reach - (distance.abs() / ramp).where(near, torch.inf)
    # smaller weights count as 1e-6, since the gradient of their logarithm would overflow
    negligible = m <= 0
    return m.clamp_(1e-6, 1).log_().masked_fill_(negligible, -torch.inf)
