"""Tables on the device through which a single launch reads and writes many tensors."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from famx import kernels

# dtypes that kernels over a table read and write; they compute in fp32
DTYPES = frozenset((torch.float32, torch.bfloat16, torch.float16))
# static tables that a CUDA graph reads, by identity: it reads them as long as it exists
_captured: dict[int, object] = {}


def supports(tensors: Sequence[Tensor], *columns: Sequence[Tensor | None]) -> bool:
    """Returns whether kernels over a table can read and write tensors.

    Args:
        tensors: tensors on one device.
        columns: tensors that must have the same dtypes, for example gradients; None where one is
            missing.
    """
    if not tensors or not kernels.available(tensors[0].device):
        return False
    dtypes = [x.dtype for x in tensors]
    if not DTYPES.issuperset(dtypes):
        return False
    for column in columns:
        rows = zip(column, dtypes, strict=True)
        if [dtype if x is None else x.dtype for x, dtype in rows] != dtypes:
            return False
    return True


def addresses(*columns: Sequence[Tensor | None]) -> Int[Tensor, "columns tensors"]:
    """Returns the addresses of tensors in memory, on their device; 0 in place of None.

    The table of the same addresses is reused, so a loop whose tensors stay where they are copies
    nothing. A CUDA graph that captures the call writes its table in every replay.

    Args:
        columns: tensors of equal count, for example parameters, gradients and averages. The first
            column has a tensor.
    """
    pointers = tuple(map(_pointers, columns))
    device = next(x.device for x in columns[0] if x is not None)
    if device.type != "cuda":
        return _addresses(pointers, device, 0)
    if torch.cuda.is_current_stream_capturing():
        return written_addresses(pointers, device)
    # a table is copied in the order of a stream, so a second stream gets a second table
    # `torch.cuda.current_stream` builds an object for the same number
    stream = torch._C._cuda_getCurrentRawStream(device.index)
    return _addresses(pointers, device, stream)


def _pointers(column: Sequence[Tensor | None]) -> tuple[int, ...]:
    try:
        return tuple(map(Tensor.data_ptr, column))  # type: ignore[arg-type]  # the fastest way
    except TypeError:  # a tensor is missing
        return tuple([0 if x is None else x.data_ptr() for x in column])


@lru_cache(maxsize=128)
def _addresses(
    pointers: tuple[tuple[int, ...], ...], device: torch.device, stream: int
) -> Int[Tensor, "columns tensors"]:
    table = torch.tensor(pointers, dtype=torch.int64)
    if device.type != "cuda":
        return table
    _load_writer(device)
    # a copy from pinned memory does not wait for the device
    return table.pin_memory().to(device, non_blocking=True)


@lru_cache
def _load_writer(device: torch.device) -> None:
    """Loads the kernels of `written_addresses`, which a capture may not be able to do."""
    written_addresses([[0, 0]], device)


def written_addresses(
    pointers: Sequence[Sequence[int]], device: torch.device
) -> Int[Tensor, "columns tensors"]:
    """Returns a table that launches write, with the addresses as their arguments.

    A CUDA graph that captures it needs neither memory of the host nor a table that was made before.
    """
    table = torch.zeros(len(pointers), len(pointers[0]), dtype=torch.int64, device=device)
    values = [value for column in pointers for value in column]
    torch._foreach_add_(list(table.view(-1).unbind()), values)
    return table


def chunks(numels: tuple[int, ...], size: int, device: torch.device) -> Int[Tensor, "3 chunks"]:
    """Divides tensors of these numbers of elements into chunks of at most `size` elements.

    The first call for these numbers waits for the device; a CUDA graph can capture a later one.

    Returns:
        The tensor of each chunk, the first of its elements there, and their number.
    """
    table = _chunks(numels, size, device)
    keep_if_captured(table, device)
    return table


@lru_cache(maxsize=64)
def _chunks(numels: tuple[int, ...], size: int, device: torch.device) -> Int[Tensor, "3 chunks"]:
    tensors: list[int] = []
    starts: list[int] = []
    counts: list[int] = []
    for i, numel in enumerate(numels):
        for start in range(0, numel, size):
            tensors.append(i)
            starts.append(start)
            counts.append(min(size, numel - start))
    return torch.tensor([tensors, starts, counts], dtype=torch.int64, device=device)


def keep_if_captured(table: object, device: torch.device) -> None:
    """Keeps a cached table in memory for good if a CUDA graph is capturing reads of it."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _captured[id(table)] = table
