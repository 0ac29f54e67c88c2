"""Kernels of MaxFactor for matrices; arguments: see `famx.kernels.maxfactor`."""

from typing import no_type_check

import triton
import triton.language as tl

from famx.kernels.maxfactor.tables import (
    COLUMN_BLOCK,
    COLUMN_BLOCKS,
    COLUMN_MEANS,
    COLUMN_PARTS,
    FIRST_TILE,
    GRADIENTS,
    IS_COLUMN,
    LARGEST_MEANS,
    LINE_BLOCK,
    N_COLUMNS,
    N_ROWS,
    N_TILES,
    PARAMS,
    ROW_BLOCK,
    ROW_BLOCKS,
    ROW_MEANS,
    ROW_PARTS,
    TENSOR,
    TINY,
    address_of,
    entry_of,
    field_of,
    is_missing,
    is_skipped,
    largest_of,
)


@triton.jit(do_not_specialize=["n_tensors", "n_tiles", "first"])
@no_type_check
def sum_tiles(  # noqa: PLR0913
    pointers,
    n_tensors,
    tensors,
    tiles,
    results,
    n_tiles,
    partial,
    first,
    tile_rows: tl.constexpr,
    repeats: tl.constexpr,
    tile_columns: tl.constexpr,
    alignment: tl.constexpr,
    dtype: tl.constexpr,
):
    """Sums g² over the rows and columns of a tile, and θ² over all of it."""
    i = entry_of(tiles, first, TENSOR)
    if is_missing(pointers, n_tensors, i):
        return
    row_block = entry_of(tiles, first, ROW_BLOCK)
    column_block = entry_of(tiles, first, COLUMN_BLOCK)
    rows = field_of(tensors, i, N_ROWS)
    columns = field_of(tensors, i, N_COLUMNS, alignment)
    column_blocks = field_of(tensors, i, COLUMN_BLOCKS)
    row_sums = partial + field_of(tensors, i, ROW_PARTS)
    column_sums = partial + field_of(tensors, i, COLUMN_PARTS) + row_block * columns
    param = address_of(pointers, n_tensors, PARAMS, i, dtype, alignment)
    gradient = address_of(pointers, n_tensors, GRADIENTS, i, dtype, alignment)

    # all rows of the tile, a few at a time
    c = column_block * tile_columns + tl.arange(0, tile_columns)
    squares = tl.zeros((tile_rows, tile_columns), tl.float32)
    param_squares = tl.zeros((tile_rows, tile_columns), tl.float32)
    totals = tl.zeros((tile_rows,), tl.float32)
    start = row_block * (tile_rows * repeats)
    stop = tl.minimum(start + tile_rows * repeats, rows)
    for row in range(start, stop, tile_rows):
        r = row + tl.arange(0, tile_rows)
        mask = (r < rows)[:, None] & (c < columns)[None, :]
        offsets = r[:, None] * columns + c[None, :]
        g = tl.load(gradient + offsets, mask=mask, other=0.0).to(tl.float32)
        p = tl.load(param + offsets, mask=mask, other=0.0).to(tl.float32)
        squares += g * g
        param_squares += p * p
        row_means = tl.sum(g * g, 1) / columns.to(tl.float32)
        totals += row_means
        tl.store(row_sums + r * column_blocks + column_block, row_means, mask=r < rows)

    column_means = tl.sum(squares, 0) / rows.to(tl.float32)
    tl.store(column_sums + c, column_means, mask=c < columns)
    result = results + first + tl.program_id(0)
    # not finite if a sum over a column overflows, although those over rows do not
    tl.store(result, tl.sum(totals) + tl.sum(column_means * 0.0))
    tl.store(result + n_tiles, tl.sum(tl.sum(param_squares, 1)))


@triton.jit(do_not_specialize=["n_tensors"])
@no_type_check
def average_lines(  # noqa: PLR0913
    pointers,
    n_tensors,
    tensors,
    lines,
    results,
    partial,
    steps,
    found_inf,
    beta2_decay,
    line_size: tl.constexpr,
    parts_at_once: tl.constexpr,
    tiles_at_once: tl.constexpr,
):
    """R <- R + b·(means of rows - R), or C by the means of columns; b = clamp(t^beta2_decay)."""
    i = entry_of(lines, 0, TENSOR)
    if is_missing(pointers, n_tensors, i):
        return
    is_column = entry_of(lines, 0, IS_COLUMN)
    block = entry_of(lines, 0, LINE_BLOCK)
    # where the partial means of a row or column lie
    columns = field_of(tensors, i, N_COLUMNS)
    column_blocks = field_of(tensors, i, COLUMN_BLOCKS)
    n = tl.where(is_column > 0, columns, field_of(tensors, i, N_ROWS))
    n_parts = tl.where(is_column > 0, field_of(tensors, i, ROW_BLOCKS), column_blocks)
    stride = tl.where(is_column > 0, 1, column_blocks)
    part_stride = tl.where(is_column > 0, columns, 1)
    parts = tl.where(
        is_column > 0, field_of(tensors, i, COLUMN_PARTS), field_of(tensors, i, ROW_PARTS)
    )
    k = block * line_size + tl.arange(0, line_size)
    sums = tl.zeros((line_size, parts_at_once), tl.float32)
    for start in range(0, n_parts, parts_at_once):
        part = start + tl.arange(0, parts_at_once)
        mask = (k < n)[:, None] & (part < n_parts)[None, :]
        offsets = k[:, None] * stride + part[None, :] * part_stride
        sums += tl.load(partial + parts + offsets, mask=mask, other=0.0)

    # t is 0 while all steps so far have been skipped
    t = tl.maximum(tl.load(steps + i), 1.0)
    weight = tl.minimum(tl.maximum(tl.exp(beta2_decay * tl.log(t)), 1e-3), 0.999)
    average = address_of(pointers, n_tensors, ROW_MEANS + is_column, i, tl.float32, 4)
    old = tl.load(average + k, mask=k < n, other=0.0)
    new = old + weight * (tl.sum(sums, 1) - old)
    sums_of_tiles = results + field_of(tensors, i, FIRST_TILE)
    n_tiles = field_of(tensors, i, N_TILES)
    skipped = is_skipped(sums_of_tiles, n_tiles, found_inf, tiles_at_once)
    new = tl.where(skipped, old, new)
    tl.store(average + k, new, mask=k < n)
    if is_column == 0:
        tl.store(partial + field_of(tensors, i, LARGEST_MEANS) + block, tl.max(new))


@triton.jit(do_not_specialize=["n_tensors", "n_tiles", "first"])
@no_type_check
def divide_tiles(  # noqa: PLR0913
    pointers,
    n_tensors,
    tensors,
    tiles,
    results,
    n_tiles,
    partial,
    floor,
    first,
    line_size: tl.constexpr,
    parts_at_once: tl.constexpr,
    tile_rows: tl.constexpr,
    repeats: tl.constexpr,
    tile_columns: tl.constexpr,
    alignment: tl.constexpr,
    dtype: tl.constexpr,
):
    """Maxima of u² = g² / max(R·C / max(R), floor) over the rows of a tile, and its sum."""
    i = entry_of(tiles, first, TENSOR)
    if is_missing(pointers, n_tensors, i):
        return
    row_block = entry_of(tiles, first, ROW_BLOCK)
    column_block = entry_of(tiles, first, COLUMN_BLOCK)
    rows = field_of(tensors, i, N_ROWS)
    columns = field_of(tensors, i, N_COLUMNS, alignment)
    column_blocks = field_of(tensors, i, COLUMN_BLOCKS)
    row_maxima = partial + field_of(tensors, i, ROW_PARTS)
    gradient = address_of(pointers, n_tensors, GRADIENTS, i, dtype, alignment)
    row_averages = address_of(pointers, n_tensors, ROW_MEANS, i, tl.float32, 4)
    column_averages = address_of(pointers, n_tensors, COLUMN_MEANS, i, tl.float32, 4)
    largest_means = partial + field_of(tensors, i, LARGEST_MEANS)
    largest_row = largest_of(largest_means, tl.cdiv(rows, line_size), parts_at_once)
    largest_row = tl.maximum(largest_row, TINY)

    # all rows of the tile, a few at a time
    c = column_block * tile_columns + tl.arange(0, tile_columns)
    column_average = tl.load(column_averages + c, mask=c < columns, other=0.0)
    sums = tl.zeros((tile_rows,), tl.float32)
    largest = tl.zeros((tile_rows,), tl.float32)
    start = row_block * (tile_rows * repeats)
    stop = tl.minimum(start + tile_rows * repeats, rows)
    for row in range(start, stop, tile_rows):
        r = row + tl.arange(0, tile_rows)
        mask = (r < rows)[:, None] & (c < columns)[None, :]
        offsets = r[:, None] * columns + c[None, :]
        g = tl.load(gradient + offsets, mask=mask, other=0.0).to(tl.float32)
        row_average = tl.load(row_averages + r, mask=r < rows, other=0.0) / largest_row
        v = tl.maximum(row_average[:, None] * column_average[None, :], floor)
        scaled = g * g / v
        row_largest = tl.max(scaled, 1)
        largest = tl.maximum(largest, row_largest)
        sums += tl.sum(scaled, 1)
        tl.store(row_maxima + r * column_blocks + column_block, row_largest, mask=r < rows)

    result = results + first + tl.program_id(0)
    tl.store(result + 2 * n_tiles, tl.max(largest))
    tl.store(result + 3 * n_tiles, tl.sum(sums))


@triton.jit(do_not_specialize=["n_tensors", "first", "lr"])
@no_type_check
def step_tiles(  # noqa: PLR0913
    pointers,
    n_tensors,
    tensors,
    tiles,
    partial,
    factors,
    lr,
    weight_decay,
    first,
    lr_on_device: tl.constexpr,
    per_row: tl.constexpr,
    parts_at_once: tl.constexpr,
    tile_rows: tl.constexpr,
    repeats: tl.constexpr,
    tile_columns: tl.constexpr,
    alignment: tl.constexpr,
    dtype: tl.constexpr,
):
    """θ <- θ - lr·weight_decay·θ - factor·sign(g)·max|u| of the row, or of the matrix."""
    i = entry_of(tiles, first, TENSOR)
    if is_missing(pointers, n_tensors, i):
        return
    row_block = entry_of(tiles, first, ROW_BLOCK)
    column_block = entry_of(tiles, first, COLUMN_BLOCK)
    rows = field_of(tensors, i, N_ROWS)
    columns = field_of(tensors, i, N_COLUMNS, alignment)
    column_blocks = field_of(tensors, i, COLUMN_BLOCKS)
    row_maxima = partial + field_of(tensors, i, ROW_PARTS)
    param = address_of(pointers, n_tensors, PARAMS, i, dtype, alignment)
    gradient = address_of(pointers, n_tensors, GRADIENTS, i, dtype, alignment)
    factor = tl.load(factors + i)
    largest = tl.load(factors + 2 * n_tensors + i)
    rate = tl.load(lr) if lr_on_device else lr
    shrink = rate * weight_decay

    c = column_block * tile_columns + tl.arange(0, tile_columns)
    start = row_block * (tile_rows * repeats)
    stop = tl.minimum(start + tile_rows * repeats, rows)
    # no row if the tensor is skipped
    stop = tl.where(tl.load(factors + n_tensors + i) > 0.0, start, stop)
    for row in range(start, stop, tile_rows):
        r = row + tl.arange(0, tile_rows)
        mask = (r < rows)[:, None] & (c < columns)[None, :]
        offsets = r[:, None] * columns + c[None, :]
        g = tl.load(gradient + offsets, mask=mask, other=0.0).to(tl.float32)
        p = tl.load(param + offsets, mask=mask, other=0.0).to(tl.float32)
        if per_row:
            squares = tl.zeros((tile_rows, parts_at_once), tl.float32)
            for first_part in range(0, column_blocks, parts_at_once):
                part = first_part + tl.arange(0, parts_at_once)
                part_at = r[:, None] * column_blocks + part[None, :]
                part_mask = (r < rows)[:, None] & (part < column_blocks)[None, :]
                maxima = tl.load(row_maxima + part_at, mask=part_mask, other=0.0)
                squares = tl.maximum(squares, maxima)
            magnitude = tl.sqrt(tl.max(squares, 1)) * factor
        else:
            magnitude = tl.zeros((tile_rows,), tl.float32) + largest * factor
        # infinity times 0, where u² overflows
        magnitude = tl.where(magnitude == magnitude, magnitude, 0.0)
        sign = (g > 0.0).to(tl.float32) - (g < 0.0).to(tl.float32)
        p = p - (sign * magnitude[:, None] + shrink * p)
        tl.store(param + offsets, p.to(dtype), mask=mask)
