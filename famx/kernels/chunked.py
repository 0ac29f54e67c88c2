"""Launches over chunks of many tensors, and how a program of such a launch reads its chunk.

A kernel takes a table of addresses, one column for each argument of the operation, and a table of
chunks. Tensors are contiguous, and those of a row have the same dtype. A kernel skips the rows in
which an address that it reads is 0: a tensor that is missing, such as a gradient, or one of another
dtype, which has a launch of its dtype. So the table of chunks is the same in every step.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from famx.kernels.tensor_table import addresses, chunks

Tensors = Sequence[Tensor]
Column = Sequence[Tensor | None]
TRITON_DTYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
CHUNK = 2048  # elements of a program, 8 for each thread: more would need more registers
NUM_WARPS = 8


def launch_chunks(
    kernel: Any,
    shaped: Tensors,
    columns: Sequence[Column],
    arguments: tuple[object, ...],
    **options: bool,
) -> None:
    """Launches a kernel over all chunks of tensors, once for each dtype.

    Args:
        shaped: tensors whose numbers of elements define the chunks, and their dtypes the launches.
        columns: tensors whose addresses the kernel reads.
        arguments: arguments of the kernel that follow the two tables.
        options: its constants, except the dtype and the size of a chunk.
    """
    device = shaped[0].device
    table = chunks(tuple([x.numel() for x in shaped]), CHUNK, device)
    n_chunks = table.shape[1]
    if not n_chunks:
        return
    with on_device(device):
        for dtype, dtype_columns in by_dtype(shaped, columns):
            kernel[(n_chunks,)](
                addresses(*dtype_columns),
                table,
                *arguments,
                **options,
                dtype=TRITON_DTYPES[dtype],
                block=CHUNK,
                num_warps=NUM_WARPS,
            )


def by_dtype(
    tensors: Tensors, columns: Sequence[Column]
) -> Iterator[tuple[torch.dtype, Sequence[Column]]]:
    """Yields the columns for each dtype, with None in the rows of tensors of another dtype."""
    dtypes = [x.dtype for x in tensors]
    if dtypes.count(dtypes[0]) == len(dtypes):
        yield dtypes[0], columns
        return
    for dtype in dict.fromkeys(dtypes):
        dtype_columns = []
        for column in columns:
            rows = zip(column, dtypes, strict=True)
            dtype_columns.append([x if row_dtype is dtype else None for x, row_dtype in rows])
        yield dtype, dtype_columns


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Returns a context in which kernels are launched on the device."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def rate(lr: float | Tensor, device: torch.device) -> tuple[float | Tensor, bool]:
    """Returns a learning rate as a kernel reads it, and whether that is a tensor on the device."""
    if isinstance(lr, Tensor):
        return lr.to(device, torch.float32, non_blocking=True), True
    return float(lr), False


@triton.jit
@no_type_check
def chunk_of_program(chunks):
    """Returns the tensor of this program's chunk, and the first and the number of its elements."""
    chunk = tl.program_id(0)
    n_chunks = tl.num_programs(0)
    i = tl.load(chunks + chunk)
    start = tl.load(chunks + n_chunks + chunk)
    count = tl.load(chunks + 2 * n_chunks + chunk).to(tl.int32)
    return i, start, count


@triton.jit
@no_type_check
def read(pointer, lane, count, is_full: tl.constexpr):
    """Loads elements as fp32.

    Args:
        count: number of elements that exist; the other lanes are 0.
        is_full: whether all exist and their address is a multiple of 16 bytes.
    """
    if is_full:
        values = tl.load(tl.multiple_of(pointer + lane, 16))
    else:
        values = tl.load(pointer + lane, mask=lane < count, other=0.0)
    return values.to(tl.float32)


@triton.jit
@no_type_check
def write(pointer, lane, values, count, is_full: tl.constexpr):
    """Stores elements; see `read`."""
    if is_full:
        tl.store(tl.multiple_of(pointer + lane, 16), values)
    else:
        tl.store(pointer + lane, values, mask=lane < count)
