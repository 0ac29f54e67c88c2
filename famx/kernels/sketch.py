"""The elements of many gradients that a spectrum over time follows, in one launch."""

from functools import reduce
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from famx.kernels.chunked import TRITON_DTYPES, Tensors, by_dtype, on_device
from famx.kernels.tensor_table import addresses


def sketch(
    gradients: Tensors,
    coordinates: Int[Tensor, "2 tensors"],
    n_coordinates: int,
    ring: Float[Tensor, "window tensors coordinates"] | None = None,
    found_inf: Float[Tensor, ""] | None = None,
) -> Float[Tensor, "window tensors coordinates"]:
    """Returns a ring without its oldest row, and with the sketch of the gradients as its last row.

    Args:
        coordinates: number of followed elements of each gradient, and their distance in memory.
        n_coordinates: length of a sketch, which is padded with zeros.
        ring: sketches of previous steps; None returns a ring of one row, in the dtype of the
            gradients.
        found_inf: 0-d; where it is not 0, the result is a copy of the ring.
    """
    gradients = [g.contiguous() for g in gradients]
    if ring is None:
        dtype = reduce(torch.promote_types, {g.dtype for g in gradients})
        result = gradients[0].new_empty(1, len(gradients), n_coordinates, dtype=dtype)
    else:
        result = torch.empty_like(ring)
    # without a ring or a flag, the kernel reads neither address
    old_ring = result if ring is None else ring
    flag = result if found_inf is None else found_inf
    has_flag = found_inf is not None
    block = triton.next_power_of_2(n_coordinates)
    with on_device(result.device):
        for dtype, (column,) in by_dtype(gradients, [gradients]):
            _sketch_kernel[(len(gradients), len(result))](
                addresses(column),
                coordinates,
                old_ring,
                result,
                flag,
                n_coordinates,
                has_flag=has_flag,
                dtype=TRITON_DTYPES[dtype],
                block=block,
                num_warps=1,
            )
    return result


@triton.jit(do_not_specialize=["found_inf", "n_coordinates"])
@no_type_check
def _sketch_kernel(  # noqa: PLR0913
    table,
    coordinates,
    old_ring,
    new_ring,
    found_inf,
    n_coordinates,
    has_flag: tl.constexpr,
    dtype: tl.constexpr,
    block: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1)
    n_tensors = tl.num_programs(0)
    window = tl.num_programs(1)
    k = tl.arange(0, block)
    mask = k < n_coordinates
    target = new_ring + (row * n_tensors + i) * n_coordinates + k
    # rows move by one step, unless the flag is set
    old_row = row + 1
    if has_flag:
        old_row = row + (tl.load(found_inf) == 0.0).to(tl.int32)
    if old_row < window:
        source = old_ring + (old_row * n_tensors + i) * n_coordinates + k
        tl.store(target, tl.load(source, mask=mask, other=0.0), mask=mask)
    else:
        address = tl.load(table + i)
        count = tl.load(coordinates + i)
        stride = tl.load(coordinates + n_tensors + i)
        # the address of an empty tensor is 0, and that of a tensor of another launch
        if (address != 0) | (count == 0):
            source = address.to(tl.pointer_type(dtype)) + k * stride
            values = tl.load(source, mask=k < count, other=0.0).to(tl.float32)
            tl.store(target, values, mask=mask)
