"""Tables of rotations by position, computed in 64 bits and cached where they are constant."""

from collections.abc import Callable

import torch
from jaxtyping import Complex, Float, Shaped
from torch import Tensor

COARSE_STRIDE = 32  # positions
_CACHE: dict[tuple, Tensor] = {}


def rotation_table(
    frequency: tuple[float, ...] | Float[Tensor, " pairs"],
    offset: int,
    seq_len: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Complex[Tensor, "t pairs"]:
    """Returns `exp(i position frequency)` for `seq_len` positions from `offset` on.

    Args:
        frequency: radians per position; tables of plain numbers are cached.
        dtype: dtype of the table's real and imaginary parts.
    """
    dtype = torch.promote_types(dtype, torch.complex64)
    if isinstance(frequency, tuple):
        return positions(phasor_table, (frequency,), offset, seq_len, device, dtype)
    frequency = to_float64(frequency)
    stop = offset + seq_len
    if torch.compiler.is_compiling():
        position = torch.arange(offset, stop, dtype=torch.float64, device=frequency.device)
        return phasors(position, frequency).to(device, dtype)
    # exp(i (a + b)) = exp(i a) exp(i b), so few exponentials are computed, and all are exact
    fine = torch.arange(COARSE_STRIDE, dtype=torch.float64, device=frequency.device)
    coarse = torch.arange(offset, stop, COARSE_STRIDE, dtype=torch.float64, device=frequency.device)
    both = phasors(torch.cat((fine, coarse)), frequency).to(device, dtype)
    fine, coarse = both.tensor_split((COARSE_STRIDE,))
    return (coarse[:, None] * fine).flatten(0, 1)[:seq_len]


def positions(
    make: Callable[..., Tensor],
    arguments: tuple,
    offset: int,
    seq_len: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Float[Tensor, "*n t k"] | Complex[Tensor, "*n t k"]:
    """Returns the rows of `seq_len` positions of a constant table, from `offset` on.

    Args:
        make: called with `(*arguments, size, device)`; returns the rows of the positions 0 to
            size - 1, along the axis before the last.
    """
    size = offset + seq_len
    if not torch.compiler.is_compiling():
        # a power of two, so that few tables are computed and all layers share them
        size = 1 << (size - 1).bit_length()
    table = constant(make, (*arguments, size), device, dtype)
    return table[..., offset : offset + seq_len, :]


def constant(
    make: Callable[..., Tensor], arguments: tuple, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Returns `make(*arguments, device)`, computed once for each device and dtype.

    While a graph is compiled, the tensor is computed by the graph.
    """
    if torch.compiler.is_compiling():
        return make(*arguments, float64_device(device)).to(device, dtype)
    key = (make, arguments, device, dtype)
    if key not in _CACHE:
        # a table that is first needed in inference mode must be usable in training too
        with torch.inference_mode(False), torch.no_grad():
            table = make(*arguments, float64_device(device)).to(device, dtype)
        if type(table) is not Tensor:
            # a placeholder of a tracer must not be used after the trace
            return table
        _CACHE[key] = table
    return _CACHE[key]


def phasor_table(
    frequencies: tuple[float, ...], size: int, device: torch.device
) -> Complex[Tensor, "{size} pairs"]:
    """Returns `exp(i position frequency)` for the positions 0 to size - 1."""
    position = torch.arange(size, dtype=torch.float64, device=device)
    return phasors(position, torch.tensor(frequencies, dtype=torch.float64, device=device))


def phasors(
    position: Shaped[Tensor, " t"], frequency: Float[Tensor, " pairs"]
) -> Complex[Tensor, "t pairs"]:
    """Returns `exp(i position frequency)` in 64 bits.

    At position 100,000 an angle in 32 bits is wrong by 0.004 radians.
    """
    angle = torch.outer(position, frequency)
    return torch.complex(angle.cos(), angle.sin())


def to_float64(parameter: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Returns the parameter in 64 bits, on a device that has them."""
    return parameter.to(float64_device(parameter.device), torch.float64)


def float64_device(device: torch.device) -> torch.device:
    """Returns the device, or the CPU where the device has no 64-bit numbers."""
    return torch.device("cpu") if device.type == "mps" else device
