"""Entries of the tables that the kernels of MaxFactor read, and sums over results of tiles.

`no_type_check` exempts kernels from jaxtyping in tests, whose wrapper Triton cannot compile.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl

# fields of a tensor in the layout, see `Layout.tensors`
N_ROWS = tl.constexpr(0)
N_COLUMNS = tl.constexpr(1)
ROW_BLOCKS = tl.constexpr(2)
COLUMN_BLOCKS = tl.constexpr(3)
FIRST_TILE = tl.constexpr(4)
N_TILES = tl.constexpr(5)
ROW_PARTS = tl.constexpr(6)
COLUMN_PARTS = tl.constexpr(7)
LARGEST_MEANS = tl.constexpr(8)
N_FIELDS = tl.constexpr(9)

# entries of a tile or a line, see `Layout.tiles` and `Layout.lines`
TENSOR = tl.constexpr(0)
ROW_BLOCK = tl.constexpr(1)
COLUMN_BLOCK = tl.constexpr(2)
IS_COLUMN = tl.constexpr(1)
LINE_BLOCK = tl.constexpr(2)

# columns of `pointers`; V of a vector is also its R
PARAMS = tl.constexpr(0)
GRADIENTS = tl.constexpr(1)
ROW_MEANS = tl.constexpr(2)
COLUMN_MEANS = tl.constexpr(3)

# smallest normal and largest number of fp32
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
LARGEST = tl.constexpr(torch.finfo(torch.float32).max)


@triton.jit
@no_type_check
def address_of(pointers, n_tensors, column, i, dtype: tl.constexpr, multiple: tl.constexpr):
    """Returns the address of tensor `i` in a column of the table, a multiple of some bytes."""
    address = tl.load(pointers + column * n_tensors + i).to(tl.pointer_type(dtype))
    # the hint is part of this function, since a caller's would be lost when it is inlined
    return tl.multiple_of(address, multiple)


@triton.jit
@no_type_check
def is_missing(pointers, n_tensors, i):
    """Returns whether tensor `i` has no gradient: its address is 0, and nothing is written."""
    return tl.load(pointers + GRADIENTS * n_tensors + i) == 0


@triton.jit
@no_type_check
def field_of(tensors, i, field: tl.constexpr, multiple: tl.constexpr = 1):
    """Returns a field of tensor `i`, which is a multiple of some number."""
    return tl.multiple_of(tl.load(tensors + i * N_FIELDS + field), multiple)


@triton.jit
@no_type_check
def entry_of(tiles, first, field: tl.constexpr):
    """Returns an entry of the tile or line of this program; `first` is that of program 0."""
    tile = first + tl.program_id(0)
    return tl.load(tiles + tile.to(tl.int64) * 3 + field).to(tl.int64)


@triton.jit
@no_type_check
def sum_of(values, n, block: tl.constexpr):
    """Returns the sum of `n` values."""
    sums = tl.zeros((block,), tl.float32)
    for start in range(0, n, block):
        k = start + tl.arange(0, block)
        sums += tl.load(values + k, mask=k < n, other=0.0)
    return tl.sum(sums)


@triton.jit
@no_type_check
def largest_of(values, n, block: tl.constexpr):
    """Returns the maximum of `n` values of 0 or more."""
    largest = tl.zeros((block,), tl.float32)
    for start in range(0, n, block):
        k = start + tl.arange(0, block)
        largest = tl.maximum(largest, tl.load(values + k, mask=k < n, other=0.0))
    return tl.max(largest)


@triton.jit
@no_type_check
def is_skipped(sums, n, found_inf, block: tl.constexpr):
    """Returns whether a gradient is not finite, or the sums of g² overflow."""
    # 0 times inf or NaN is NaN, which is not equal to 0
    total = sum_of(sums, n, block)
    return (tl.load(found_inf) > 0.0) | (total * 0.0 != 0.0)
