"""Kernels of MaxFactor for vectors, and for the factors of all tensors."""

from typing import no_type_check

import triton
import triton.language as tl

from famx.kernels.maxfactor.tables import (
    COLUMN_BLOCK,
    FIRST_TILE,
    GRADIENTS,
    LARGEST,
    N_COLUMNS,
    N_ROWS,
    N_TILES,
    PARAMS,
    ROW_MEANS,
    TENSOR,
    TINY,
    address_of,
    entry_of,
    field_of,
    is_missing,
    is_skipped,
    largest_of,
    sum_of,
)


@triton.jit(do_not_specialize=["n_tensors", "n_tiles", "first"])
@no_type_check
def average_vectors(  # noqa: PLR0913
    pointers,
    n_tensors,
    tensors,
    tiles,
    results,
    n_tiles,
    found_inf,
    weight,
    floor,
    first,
    tile_columns: tl.constexpr,
    dtype: tl.constexpr,
):
    """V <- V + weight·(g² - V) for elements of a vector; maximum and sum of u² = g² / V."""
    i = entry_of(tiles, first, TENSOR)
    if is_missing(pointers, n_tensors, i):
        return
    k = entry_of(tiles, first, COLUMN_BLOCK) * tile_columns + tl.arange(0, tile_columns)
    mask = k < field_of(tensors, i, N_COLUMNS)
    param = address_of(pointers, n_tensors, PARAMS, i, dtype, 1)
    gradient = address_of(pointers, n_tensors, GRADIENTS, i, dtype, 1)
    average = address_of(pointers, n_tensors, ROW_MEANS, i, tl.float32, 4)
    p = tl.load(param + k, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(gradient + k, mask=mask, other=0.0).to(tl.float32)
    old = tl.load(average + k, mask=mask, other=0.0)
    # squares that overflow count as the largest number
    new = old + weight * (tl.minimum(g * g, LARGEST) - old)
    new = tl.where(tl.load(found_inf) > 0.0, old, new)
    tl.store(average + k, new, mask=mask)
    scaled = g / tl.sqrt(tl.maximum(new, floor))

    result = results + first + tl.program_id(0)
    tl.store(result, 0.0)
    tl.store(result + n_tiles, tl.sum(p * p))
    tl.store(result + 2 * n_tiles, tl.max(scaled * scaled))
    tl.store(result + 3 * n_tiles, tl.sum(scaled * scaled))


@triton.jit(do_not_specialize=["n_tensors", "n_tiles", "lr"])
@no_type_check
def scale_tensors(  # noqa: PLR0913
    tensors,
    n_tensors,
    results,
    n_tiles,
    factors,
    steps,
    lr,
    found_inf,
    min_size,
    clip_threshold,
    min_lr,
    lr_on_device: tl.constexpr,
    tiles_at_once: tl.constexpr,
):
    """a / (max(1, RMS(u)/clip_threshold)·max|u|), a = max(min_size, RMS θ)·rate, of a tensor."""
    i = tl.program_id(0).to(tl.int64)
    numel = (field_of(tensors, i, N_ROWS) * field_of(tensors, i, N_COLUMNS)).to(tl.float32)
    n = field_of(tensors, i, N_TILES)
    result = results + field_of(tensors, i, FIRST_TILE)
    # RMS θ, in which a sum of squares that overflows counts as the largest number
    param_squares = tl.minimum(sum_of(result + n_tiles, n, tiles_at_once), LARGEST)
    size = tl.maximum(tl.sqrt(param_squares) / tl.sqrt(numel), min_size)
    rate = tl.load(lr) if lr_on_device else lr
    t = tl.maximum(tl.load(steps + i), 1.0)
    bounded = tl.maximum(tl.minimum(rate, 1.0 / tl.sqrt(t)), min_lr)
    rate = tl.where(rate > 0.0, bounded, 0.0)

    largest = tl.sqrt(largest_of(result + 2 * n_tiles, n, tiles_at_once))
    rms = tl.sqrt(sum_of(result + 3 * n_tiles, n, tiles_at_once) / numel)
    divisor = largest * tl.maximum(rms / clip_threshold, 1.0)
    # the factor is finite, so 0 where u is 0
    factor = tl.minimum(size * rate / tl.maximum(divisor, TINY), LARGEST)
    skipped = is_skipped(result, n, found_inf, tiles_at_once)
    tl.store(factors + i, factor)
    tl.store(factors + n_tensors + i, skipped.to(tl.float32))
    tl.store(factors + 2 * n_tensors + i, largest)


@triton.jit(do_not_specialize=["n_tensors", "first", "lr"])
@no_type_check
def step_vectors(  # noqa: PLR0913
    pointers,
    n_tensors,
    tensors,
    tiles,
    factors,
    lr,
    weight_decay,
    floor,
    first,
    lr_on_device: tl.constexpr,
    tile_columns: tl.constexpr,
    dtype: tl.constexpr,
):
    """θ <- θ - lr·weight_decay·θ - factor·g / sqrt(V) for elements of a vector."""
    i = entry_of(tiles, first, TENSOR)
    if is_missing(pointers, n_tensors, i):
        return
    k = entry_of(tiles, first, COLUMN_BLOCK) * tile_columns + tl.arange(0, tile_columns)
    mask = k < field_of(tensors, i, N_COLUMNS)
    if tl.load(factors + n_tensors + i) == 0.0:
        param = address_of(pointers, n_tensors, PARAMS, i, dtype, 1)
        gradient = address_of(pointers, n_tensors, GRADIENTS, i, dtype, 1)
        average = address_of(pointers, n_tensors, ROW_MEANS, i, tl.float32, 4)
        p = tl.load(param + k, mask=mask, other=0.0).to(tl.float32)
        g = tl.load(gradient + k, mask=mask, other=0.0).to(tl.float32)
        v = tl.load(average + k, mask=mask, other=0.0)
        scaled = g / tl.sqrt(tl.maximum(v, floor))
        rate = tl.load(lr) if lr_on_device else lr
        p = p - (scaled * tl.load(factors + i) + rate * weight_decay * p)
        tl.store(param + k, p.to(dtype), mask=mask)
