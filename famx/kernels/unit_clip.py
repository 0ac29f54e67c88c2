"""Clipping of the gradients of many tensors, unit by unit, in one launch."""

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from famx.kernels.chunked import TRITON_DTYPES, Column, by_dtype, on_device
from famx.kernels.tensor_table import addresses, keep_if_captured

BLOCK = 1024  # elements that a program reads at once
LONG_BLOCK = 8192  # the same for units that are longer than this
ROWS = 1024  # units that are summed at once


class UnitTable(NamedTuple):
    """The units of tensors of certain shapes, one program each; those of a tensor are in order.

    Args:
        tensor: index of the tensor of each unit.
        start: first element of each unit in its tensor.
        length: number of elements of the units of each tensor.
        min_norm: lower bound of the norm of the weights of a unit, for each tensor.
        first, n_units: the units of each tensor.
        n_short: number of units of at most LONG_BLOCK elements, which are first.
    """

    tensor: Int[Tensor, " units"]
    start: Int[Tensor, " units"]
    length: Int[Tensor, " tensors"]
    min_norm: Float[Tensor, " tensors"]
    first: Int[Tensor, " tensors"]
    n_units: Int[Tensor, " tensors"]
    n_short: int


def clip(
    params: Sequence[Tensor], gradients: Column, max_ratio: float, eps: float
) -> Float[Tensor, " params"]:
    """Scales the gradient of each unit down to `max_ratio` times the norm of its weights.

    Args:
        params, gradients: contiguous, both of a pair of the same dtype; a gradient may be missing.
        eps: lower bound of the RMS of a unit's weights.

    Returns:
        The norm of each gradient before clipping, 0 where it is missing.
    """
    device = params[0].device
    units = _units(tuple([p.shape for p in params]), eps, device)
    keep_if_captured(units, device)
    squares = torch.zeros(len(units.tensor), device=device)
    norms = squares.new_empty(len(params))
    with on_device(device):
        for dtype, columns in by_dtype(params, [params, gradients]):
            table = addresses(*columns)
            _launch(table, units, max_ratio, squares, TRITON_DTYPES[dtype])
        _norm_kernel[(len(params),)](squares, units.first, units.n_units, norms, ROWS, num_warps=4)
    torch.autograd.graph.increment_version([g for g in gradients if g is not None])
    return norms


def _launch(
    table: Tensor, units: UnitTable, max_ratio: float, squares: Tensor, dtype: tl.dtype
) -> None:
    """Launches programs for short units, and larger ones for long units."""
    n_units = len(units.tensor)
    for first, stop, block, num_warps in (
        (0, units.n_short, BLOCK, 4),
        (units.n_short, n_units, LONG_BLOCK, 32),
    ):
        if first == stop:
            continue
        _clip_kernel[(stop - first,)](
            table,
            *units[:4],
            float(max_ratio),
            squares,
            first,
            len(units.length),
            dtype=dtype,
            width=16 // (dtype.primitive_bitwidth // 8),
            block=block,
            num_warps=num_warps,
        )


@lru_cache(maxsize=8)
def _units(shapes: tuple[torch.Size, ...], eps: float, device: torch.device) -> UnitTable:
    counts = []
    lengths = []
    for shape in shapes:
        # a vector or a scalar is one unit; else all axes but the first belong to a unit
        counts.append(1 if len(shape) < 2 else shape[0])
        lengths.append(prod(shape) if len(shape) < 2 else prod(shape[1:]))
    # short units first
    tensor: list[int] = []
    start: list[int] = []
    first = [0] * len(shapes)
    n_short = 0
    for is_long in (False, True):
        for i, (count, length) in enumerate(zip(counts, lengths, strict=True)):
            if (length > LONG_BLOCK) is not is_long:
                continue
            first[i] = len(tensor)
            tensor += [i] * count
            start += [length * unit for unit in range(count)]
        if not is_long:
            n_short = len(tensor)
    return UnitTable(
        torch.tensor(tensor, dtype=torch.int32, device=device),
        torch.tensor(start, dtype=torch.int64, device=device),
        torch.tensor(lengths, dtype=torch.int64, device=device),
        torch.tensor([eps * length**0.5 for length in lengths], device=device),
        torch.tensor(first, dtype=torch.int64, device=device),
        torch.tensor(counts, dtype=torch.int64, device=device),
        n_short,
    )


@triton.jit
@no_type_check
def _elements(pointer, k, is_aligned: tl.constexpr):
    """Returns the addresses of elements; `is_aligned` declares that they begin at 16 bytes."""
    # a hint belongs to one operation, so each branch has its own
    if is_aligned:
        return tl.multiple_of(pointer + k, 16)
    else:
        return pointer + k


@triton.jit
@no_type_check
def _clip_unit(p, g, n, max_ratio, min_norm, is_aligned: tl.constexpr, block: tl.constexpr):
    """Scales a unit of the gradient; returns its squared norm before.

    Args:
        n: number of elements of the unit.
        is_aligned: whether the addresses and the size of the unit are multiples of 16 bytes.
    """
    g_sums = tl.zeros((block,), tl.float32)
    p_sums = tl.zeros((block,), tl.float32)
    for start in range(0, n, block):
        k = start + tl.arange(0, block)
        g_elements = _elements(g, k, is_aligned)
        gradient = tl.load(g_elements, mask=k < n, other=0.0).to(tl.float32)
        weights = tl.load(_elements(p, k, is_aligned), mask=k < n, other=0.0).to(tl.float32)
        g_sums += gradient * gradient
        p_sums += weights * weights
    square = tl.sum(g_sums, 0)
    # a maximum that keeps NaN
    norm = tl.sqrt_rn(tl.sum(p_sums, 0))
    norm = tl.where(norm < min_norm, min_norm, norm)
    scale = norm * max_ratio / tl.sqrt_rn(square)
    # false for NaN, where the gradient stays
    if scale < 1.0:
        for start in range(0, n, block):
            k = start + tl.arange(0, block)
            g_elements = _elements(g, k, is_aligned)
            gradient = tl.load(g_elements, mask=k < n, other=0.0).to(tl.float32)
            tl.store(g_elements, gradient * scale, mask=k < n)
    return square


@triton.jit(do_not_specialize=["first", "n_tensors"])
@no_type_check
def _clip_kernel(  # noqa: PLR0913
    table,
    unit_tensors,
    unit_starts,
    lengths,
    min_norms,
    max_ratio,
    squares,
    first,
    n_tensors,
    dtype: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
):
    unit = first + tl.program_id(0)
    i = tl.load(unit_tensors + unit)
    start = tl.load(unit_starts + unit)
    n = tl.load(lengths + i)
    min_norm = tl.load(min_norms + i)
    p_address = tl.load(table + i)
    g_address = tl.load(table + n_tensors + i)
    if g_address != 0:
        p = p_address.to(tl.pointer_type(dtype)) + start
        g = g_address.to(tl.pointer_type(dtype)) + start
        # 16 bytes at once, if units begin at multiples of them
        if ((p_address | g_address) % 16 == 0) & (n % width == 0):
            # the product shows the compiler that n is a multiple
            n_elements = n // width * width
            square = _clip_unit(p, g, n_elements, max_ratio, min_norm, True, block)
        else:
            square = _clip_unit(p, g, n, max_ratio, min_norm, False, block)
        tl.store(squares + unit, square)


@triton.jit
@no_type_check
def _norm_kernel(squares, firsts, counts, norms, block: tl.constexpr):
    """Computes the norm of a tensor from the squared norms of its units, in a fixed order."""
    i = tl.program_id(0)
    first = tl.load(firsts + i)
    count = tl.load(counts + i)
    sums = tl.zeros((block,), tl.float32)
    for start in range(0, count, block):
        k = start + tl.arange(0, block)
        sums += tl.load(squares + first + k, mask=k < count, other=0.0)
    tl.store(norms + i, tl.sqrt_rn(tl.sum(sums, 0)))
