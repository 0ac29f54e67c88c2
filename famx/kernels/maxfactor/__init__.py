"""MaxFactor's step for all tensors in a few launches; its plain form is `MaxFactor.update`.

The launches wait for one another, since V needs means over all of g², and U needs the maximum and
the mean over all of u² = g²/V:

1. Partial sums of g² over rows and columns, and sums of θ² (`sum_tiles`). Vectors and scalars
   average g² into V at once, and compute u² (`average_vectors`).
2. R and C (`average_lines`).
3. Maxima of u² over rows, and its sums (`divide_tiles`).
4. The factor from u to the step, for each tensor (`scale_tensors`).
5. The step (`step_tiles`, `step_vectors`).

1, 3 and 5 are launched for each shape of tiles and dtype. Each program writes its partial results
to memory of its own, and they are summed in a fixed order: steps are deterministic.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from famx.kernels.chunked import TRITON_DTYPES, Column, Tensors, on_device, rate
from famx.kernels.maxfactor.layout import (
    ALIGNMENT,
    LINE,
    REPEATS,
    TILE,
    WIDTHS,
    Batch,
    Spec,
    layout,
)
from famx.kernels.maxfactor.matrices import average_lines, divide_tiles, step_tiles, sum_tiles
from famx.kernels.maxfactor.vectors import average_vectors, scale_tensors, step_vectors
from famx.kernels.tensor_table import addresses

PARTS = 32  # partial results that a program adds at once
TILES = 1024  # tiles whose results a program adds at once


class Options(NamedTuple):
    """Hyperparameters of MaxFactor.

    Args:
        beta2_decay, clip_threshold, weight_decay, gamma, min_lr: see `MaxFactor`.
        floor: eps₁², lower bound of V.
        min_size: eps₂, lower bound of RMS θ.
        per_row: whether the step of a matrix has the size of the maximum of each row, or of all.
    """

    beta2_decay: float
    floor: float
    min_size: float
    clip_threshold: float
    weight_decay: float
    gamma: float
    min_lr: float
    per_row: bool


def step(
    params: Tensors,
    gradients: Column,
    averages: tuple[Column, Column],
    steps: Float[Tensor, " tensors"],
    lr: float | Tensor,
    found_inf: Float[Tensor, ""],
    options: Options,
) -> None:
    """Takes the step of MaxFactor in place; no change if `found_inf` is 1.

    Args:
        params: contiguous parameters.
        gradients: contiguous gradients of the same dtypes; None where one is missing, whose
            parameter does not change.
        averages: R and C of each matrix, and V of each vector or scalar, twice; in fp32.
        steps: number of steps of each parameter, this one included; on the device.
        lr: a number or a 0-d tensor.
        found_inf: 0-d, 1 or 0.
    """
    device = found_inf.device
    tables = layout(tuple(map(_spec, params, gradients)), device)
    pointers = addresses(params, gradients, *averages)
    matrices = [batch for batch in tables.batches if not batch.spec.is_vector]
    vectors = [batch for batch in tables.batches if batch.spec.is_vector]
    n_tensors = len(params)
    n_tiles = len(tables.tiles)
    n_lines = len(tables.lines)
    lr, lr_on_device = rate(lr, device)

    # memory of the partial results, see `famx.kernels.maxfactor.tables`
    results = torch.empty(4, n_tiles, device=device)
    factors = torch.empty(3, n_tensors, device=device)
    partial = torch.empty(tables.n_partial, device=device)
    inputs = (pointers, n_tensors, tables.tensors, tables.tiles)
    counted = (*inputs, results, n_tiles)

    with on_device(device):
        # V, or the sums that it needs
        floor = options.floor
        for batch in vectors:
            weight = 1 - options.gamma
            average_vectors[(batch.n_tiles,)](
                *counted, found_inf, weight, floor, **_constants(batch)
            )
        for batch in matrices:
            sum_tiles[(batch.n_tiles,)](*counted, partial, **_constants(batch))
        sizes = {"line_size": LINE, "parts_at_once": PARTS}
        if n_lines:
            lines = (pointers, n_tensors, tables.tensors, tables.lines, results, partial)
            numbers = (steps, found_inf, options.beta2_decay)
            average_lines[(n_lines,)](*lines, *numbers, tiles_at_once=TILES, **sizes)

        # u², and the factor from u to the step
        for batch in matrices:
            divide_tiles[(batch.n_tiles,)](*counted, partial, floor, **sizes, **_constants(batch))
        measured = (tables.tensors, n_tensors, results, n_tiles, factors, steps, lr, found_inf)
        bounds = (options.min_size, options.clip_threshold, options.min_lr)
        scale_tensors[(n_tensors,)](*measured, *bounds, lr_on_device, tiles_at_once=TILES)

        # the step
        rates = (factors, lr, options.weight_decay)
        for batch in vectors:
            constants = {"lr_on_device": lr_on_device, **_constants(batch)}
            step_vectors[(batch.n_tiles,)](*inputs, *rates, floor, **constants)
        for batch in matrices:
            constants = {"lr_on_device": lr_on_device, **_step_constants(batch, options)}
            step_tiles[(batch.n_tiles,)](*inputs, partial, *rates, **constants)
    torch.autograd.graph.increment_version(params)


def _step_constants(batch: Batch, options: Options) -> dict[str, object]:
    """Returns the constants of `step_tiles`."""
    # narrow tiles cover a row, which then has one maximum
    parts = PARTS if batch.spec.tile_columns == WIDTHS[-1] else 1
    return {"per_row": options.per_row, "parts_at_once": parts, **_constants(batch)}


def _spec(param: Tensor, gradient: Tensor | None) -> Spec:
    if param.ndim < 2:
        # vectors are small: their loads need no alignment
        return Spec(1, param.numel(), is_vector=True, aligned=False, dtype=param.dtype)
    rows = len(param)
    columns = param.numel() // max(1, rows)
    pointers = param.data_ptr() | (0 if gradient is None else gradient.data_ptr())
    aligned = columns % ALIGNMENT == 0 and pointers % ALIGNMENT == 0
    return Spec(rows, columns, is_vector=False, aligned=aligned, dtype=param.dtype)


def _constants(batch: Batch) -> dict[str, object]:
    """Returns the first tile of a launch, and its arguments that are compiled in."""
    spec = batch.spec
    constants: dict[str, object] = {
        "first": batch.first,
        "tile_columns": spec.tile_columns,
        "dtype": TRITON_DTYPES[spec.dtype],
    }
    if not spec.is_vector:
        constants["tile_rows"] = TILE // spec.tile_columns
        constants["repeats"] = REPEATS
        constants["alignment"] = ALIGNMENT if spec.aligned else 1
    return constants
