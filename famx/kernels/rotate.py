"""Rotations of pairs of channels in one launch, forward and backward.

The plain form is `famx.rotary._channels.rotate`, which needs a launch for each of the conversions
to fp32, to complex numbers and back, and for the product.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Complex, Float
from torch import Tensor

from famx.kernels.chunked import TRITON_DTYPES, on_device

ELEMENTS = 4096  # of a program


def supports(x: Float[Tensor, "b h t k"], table: Complex[Tensor, "t pairs"]) -> bool:
    """Returns whether the kernel can rotate these channels: all of them, by a constant table."""
    is_constant = not table.requires_grad and table.dtype is torch.complex64
    rotates_all = x.ndim == 4 and x.shape[-1] == 2 * table.shape[-1] and table.ndim == 2
    return is_constant and rotates_all and x.dtype in TRITON_DTYPES and x.stride(-1) == 1


def rotate(
    x: Float[Tensor, "b h t k"], table: Complex[Tensor, "t pairs"]
) -> Float[Tensor, "b h t k"]:
    """Multiplies neighbouring channels, as complex numbers, by the table; computed in fp32."""
    return _Rotate.apply(x, torch.view_as_real(table))


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "b h t k"], table: Float[Tensor, "t pairs 2"]
    ) -> Float[Tensor, "b h t k"]:
        ctx.save_for_backward(table)
        return _launch(x, table, 1.0)

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "b h t k"]) -> tuple[Tensor, None]:
        (table,) = ctx.saved_tensors
        if gradient.stride(-1) != 1:
            gradient = gradient.contiguous()
        # the inverse of a rotation is its conjugate
        return _launch(gradient, table, -1.0), None


def _launch(
    x: Float[Tensor, "b h t k"], table: Float[Tensor, "t pairs 2"], sign: float
) -> Float[Tensor, "b h t k"]:
    """Rotates by the table, or by its conjugate if `sign` is -1."""
    b, h, t, k = x.shape
    result = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return result
    width = triton.next_power_of_2(k)
    rows = max(1, ELEMENTS // width)
    with on_device(x.device):
        _rotate_kernel[(triton.cdiv(t, rows), b * h)](
            x,
            table,
            result,
            *x.stride()[:3],
            h,
            t,
            table.stride(0),
            sign,
            channels=k,
            width=width,
            rows=rows,
        )
    return result


@triton.jit(do_not_specialize=["h", "t"])
@no_type_check
def _rotate_kernel(  # noqa: PLR0913  # a kernel takes each stride and size
    x,
    table,
    result,
    stride_b,
    stride_h,
    stride_t,
    h,
    t,
    stride_table,
    sign,
    channels: tl.constexpr,
    width: tl.constexpr,
    rows: tl.constexpr,
):
    # a block of positions of one head
    position = tl.program_id(0) * rows + tl.arange(0, rows)
    head = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, width)
    mask = (position < t)[:, None] & (channel < channels)[None, :]
    source = x + (head // h) * stride_b + (head % h) * stride_h
    offsets = position.to(tl.int64)[:, None] * stride_t + channel[None, :]
    values = tl.load(source + offsets, mask=mask, other=0.0).to(tl.float32)
    phasors = tl.load(
        table + position[:, None] * stride_table + channel[None, :], mask=mask, other=0.0
    )
    # neighbouring channels are the real and the imaginary part
    real, imaginary = tl.split(tl.reshape(values, (rows, width // 2, 2)))
    cosine, sine = tl.split(tl.reshape(phasors, (rows, width // 2, 2)))
    sine = sign * sine
    new_real = real * cosine - imaginary * sine
    new_imaginary = real * sine + imaginary * cosine
    rotated = tl.reshape(tl.join(new_real, new_imaginary), (rows, width))
    target = result + head * t * channels
    offsets = position.to(tl.int64)[:, None] * channels + channel[None, :]
    tl.store(target + offsets, rotated.to(result.dtype.element_ty), mask=mask)
