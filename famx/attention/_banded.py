"""Attention to what is near, in blocks: time and memory grow with t * window, not with t * s (seed.md: slide_win)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

BLOCK = 64  # queries at a time, which share BLOCK + window - 1 keys


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
    """`softmax(q k^T / sqrt(head_dim) + log m) v` over the keys less than `window` away, where `mask` is True.

    The queries are the last ones of the keys' sequence. `m` is 1, or with a `reach` it falls softly with the
    distance: `m = clamp((reach + ramp - distance) / ramp, 0, 1)`. A query that may attend nowhere gets zeros.

    Args:
        window: positions, at least 1; at 1 a query sees itself alone.
        reach: positions, for each query: how far its keys keep their whole weight.
        ramp: positions, over which the weight then falls to 0.
    """
    batch, _, t, _ = q.shape
    if not batch or not t:
        return q @ k.mT @ v
    s = k.shape[-2]
    window, size = min(window, s), min(BLOCK, t)
    ahead, missing = 0 if causal else window - 1, -t % size
    # keys that no query reaches are a padding of less than nothing
    span, around = size + window - 1 + ahead, (window - 1 - (s - t), ahead + missing)
    distance = (
        torch.arange(size, device=q.device)[:, None]
        + window
        - 1
        - torch.arange(span, device=q.device)
    )
    near = (distance < window) & (distance > (-1 if causal else -window))
    seen = q.new_ones(1, 1, 1, s, dtype=torch.bool) if mask is None else mask
    bias = near & _along(seen, around, size, span, missing)
    if reach is not None:
        m = _cut(reach[..., None].float() / ramp + 1, size, missing) - (
            distance.abs() / ramp
        ).where(bias, torch.inf)
        # what is next to nothing counts as 1e-6: the logarithm's gradient there would overflow
        nothing = m <= 0
        bias = m.clamp_(1e-6, 1).log_().masked_fill_(nothing, -torch.inf).to(q)
    k, v = (_Overlapping.apply(x, around, span, size) for x in (k, v))
    # with the blocks among the batch, a mask is shared by the heads
    folded = (
        x.transpose(1, 2).expand(batch, *[-1] * 4).flatten(0, 1)
        for x in (_cut(q, size, missing), k, v, bias)
    )
    y = (
        scaled_dot_product_attention(*folded)
        .unflatten(0, (batch, -1))
        .transpose(1, 2)
        .flatten(2, 3)
    )
    return y[:, :, :t] if missing else y


class _Overlapping(torch.autograd.Function):
    """Padded, in windows of `span` positions, one every `size`, as `unfold` gives them, whose gradient is slower."""

    @staticmethod
    def forward(
        ctx, x: Float[Tensor, "b h s k"], around: tuple[int, int], span: int, size: int
    ) -> Float[Tensor, "b h blocks {span} k"]:
        padded = pad(x, (0, 0, *around))
        ctx.shape, ctx.around, ctx.size = padded.shape, around, size
        return padded.unfold(-2, span, size).mT

    @staticmethod
    def backward(
        ctx, grad: Float[Tensor, "b h blocks span k"]
    ) -> tuple[Float[Tensor, "b h s k"], None, None, None]:
        total, others = grad.new_zeros(ctx.shape), (grad.shape[2] - 1) * ctx.size
        for i, part in enumerate(grad.split(ctx.size, dim=-2)):
            start, width = i * ctx.size, part.shape[-2]
            total[..., start : start + others + width, :].unfold(-2, width, ctx.size).mT.add_(part)
        return pad(total, (0, 0, *(-places for places in ctx.around))), None, None, None


def _cut(
    x: Float[Tensor, "b h t k"], size: int, missing: int
) -> Float[Tensor, "b h blocks {size} k"]:
    whole = pad(x, (0, 0, 0, missing)) if missing else x  # else a copy
    return whole.unflatten(-2, (-1, size))


def _along(
    seen: Bool[Tensor, "#b #h #t s"], around: tuple[int, int], size: int, span: int, missing: int
) -> Bool[Tensor, "#b #h blocks #size {span}"]:
    """The blocks of a mask along its diagonal, in which what lies outside the sequence is hidden."""
    if seen.shape[-2] == 1:
        return pad(seen, around).unfold(-1, span, size).transpose(-2, -3)
    strips = pad(seen, (*around, 0, missing)).unfold(-2, size, size)
    return strips.unfold(-2, span, size).diagonal(dim1=2, dim2=3).movedim(-1, 2)
