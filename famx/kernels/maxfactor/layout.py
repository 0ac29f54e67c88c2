"""The division of tensors into tiles, each for one program of the kernels of MaxFactor."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from famx.kernels.tensor_table import keep_if_captured

TILE = 2048  # elements of a matrix that a program holds at once
REPEATS = 16  # tiles below each other that a program reads, one after another
WIDTHS = (16, 64, 256)  # columns of a tile
VECTOR = 1024  # elements of a vector that a program reads
LINE = 64  # means of rows or columns that a program averages
ALIGNMENT = 16  # columns and bytes whose multiples allow loads of several elements at once


class Spec(NamedTuple):
    """One tensor as a matrix; vectors and scalars have a single row.

    Args:
        rows, columns: its shape as a matrix.
        is_vector: whether it has fewer than two axes.
        aligned: whether all its rows begin at addresses that are multiples of `ALIGNMENT`.
        dtype: dtype of the parameter and of its gradient.
    """

    rows: int
    columns: int
    is_vector: bool
    aligned: bool
    dtype: torch.dtype

    @property
    def tile_columns(self) -> int:
        """Columns of its tiles: the narrowest that cover a row, or the widest."""
        if self.is_vector:
            return VECTOR
        return next((width for width in WIDTHS if width >= self.columns), WIDTHS[-1])

    @property
    def tile_rows(self) -> int:
        """Rows that a program reads, in all its tiles."""
        return 1 if self.is_vector else REPEATS * TILE // self.tile_columns


class Batch(NamedTuple):
    """Tiles of one shape and dtype, which a launch processes.

    Args:
        spec: one of its tensors, which agrees with the rest in all but the number of rows and
            columns.
        first: index of its first tile.
        n_tiles: number of its tiles, which are consecutive.
    """

    spec: Spec
    first: int
    n_tiles: int


class Layout(NamedTuple):
    """Tables on the device that the kernels read.

    Args:
        tensors: for each tensor its rows, columns, blocks of rows, blocks of columns, first tile,
            number of tiles, and where its partial results begin in the scratch memory: those of
            rows (rows x blocks of columns), of columns (blocks of rows x columns), and the largest
            means of lines of rows.
        tiles: for each tile its tensor, block of rows and block of columns.
        lines: for each line of means its tensor, whether they are means of columns, and its block.
        batches: the tiles of each launch.
        n_partial: size of the scratch memory.
    """

    tensors: Int[Tensor, "tensors fields"]
    tiles: Int[Tensor, "tiles 3"]
    lines: Int[Tensor, "lines 3"]
    batches: list[Batch]
    n_partial: int


def layout(specs: tuple[Spec, ...], device: torch.device) -> Layout:
    """Returns the tables for tensors; those of the same tensors are reused.

    The first call for these tensors waits for the device; a CUDA graph can capture a later one.
    """
    tables = _layout(specs, device)
    keep_if_captured(tables, device)
    return tables


@lru_cache(maxsize=64)
def _layout(specs: tuple[Spec, ...], device: torch.device) -> Layout:
    # tensors whose tiles agree, by the first of them
    members: dict[tuple[int, Spec], list[int]] = {}
    for i, spec in enumerate(specs):
        key = (spec.tile_columns, spec._replace(rows=0, columns=0))
        members.setdefault(key, []).append(i)

    # tiles, batch by batch
    tensors = [[0]] * len(specs)
    tiles: list[tuple[int, int, int]] = []
    lines: list[tuple[int, int, int]] = []
    batches = []
    n_partial = 0
    for indices in members.values():
        first = len(tiles)
        for i in indices:
            spec = specs[i]
            row_blocks = _blocks(spec.rows, spec.tile_rows)
            column_blocks = _blocks(spec.columns, spec.tile_columns)
            fields = [spec.rows, spec.columns, row_blocks, column_blocks]
            fields += [len(tiles), row_blocks * column_blocks]
            for row_block in range(row_blocks):
                tiles += [(i, row_block, column_block) for column_block in range(column_blocks)]
            # partial results of matrices
            if not spec.is_vector:
                row_lines = _blocks(spec.rows, LINE)
                lines += [(i, 0, block) for block in range(row_lines)]
                lines += [(i, 1, block) for block in range(_blocks(spec.columns, LINE))]
                for size in (spec.rows * column_blocks, row_blocks * spec.columns, row_lines):
                    fields.append(n_partial)
                    n_partial += size
            else:
                fields += [0, 0, 0]
            tensors[i] = fields
        batches.append(Batch(specs[indices[0]], first, len(tiles) - first))
    return Layout(
        _to_device(tensors, torch.int64, device),
        _to_device(tiles, torch.int32, device),
        _to_device(lines, torch.int32, device),
        batches,
        n_partial,
    )


def _blocks(n: int, size: int) -> int:
    return -(-n // size)


def _to_device(rows: Sequence[Sequence[int]], dtype: torch.dtype, device: torch.device) -> Tensor:
    table = torch.tensor(rows, dtype=dtype, device=device)
    return table.view(len(rows), -1 if rows else 3)
