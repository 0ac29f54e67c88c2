"""What rotaries share: tables of turns, made in 64 bits, and two ways to apply them to channels."""

from collections.abc import Callable

import torch
from jaxtyping import Complex, Float, Shaped
from torch import Tensor, nn

_CONSTANTS: dict[tuple, Tensor] = {}
STRIDE = 32  # positions a coarse step


class PairRotary(nn.Module):
    """`x_k <- x_k exp(i t frequency_k)` on pairs of neighbouring channels. An odd last channel passes unrotated.

    Args:
        frequencies: of the first pairs, in radians a position: plain numbers, which no cast of the module to half
            precision can blur.
        learned: they are parameters.
    """

    def __init__(self, frequencies: tuple[float, ...], learned: bool = False):
        super().__init__()
        self.frequencies = frequencies
        self.frequency = nn.Parameter(torch.tensor(frequencies)) if learned else None

    def speeds(self) -> tuple[float, ...] | Float[Tensor, "pairs"]:
        """Radians a position, as numbers where they never change."""
        return self.frequencies if self.frequency is None else self.frequency

    def table(self, offset: int, x: Float[Tensor, "b h t k"]) -> Complex[Tensor, "t pairs"]:
        return turns(self.speeds(), offset, x.shape[-2], x.device, widened(x.dtype))

    def forward(self, x: Float[Tensor, "b h t k"], offset: int = 0) -> Float[Tensor, "b h t k"]:
        """Rotates position `offset + t`."""
        return turn(x, self.table(offset, x))


def geometric(planes: int, theta: float) -> tuple[float, ...]:
    """Frequencies from 1 radian a position down, the last but a step of the ladder to `1 / theta`."""
    return tuple(theta ** (-k / planes) for k in range(planes))


def pairs_of(head_dim: int, least: int = 2, **positive: float | int) -> int:
    """Pairs of channels in a head.

    Raises:
        ValueError: there are fewer channels than `least`, or one of `positive` is not.
    """
    if head_dim < least:
        raise ValueError(f"head_dim={head_dim} must be at least {least}")
    for name, value in positive.items():
        if value <= 0:
            raise ValueError(f"{name}={value} must be greater than 0")
    return head_dim // 2


def widened(dtype: torch.dtype) -> torch.dtype:
    """What a rotation of `dtype` is computed in."""
    return torch.promote_types(dtype, torch.float32)


def turn(x: Float[Tensor, "*b k"], table: Complex[Tensor, "*#b pairs"]) -> Float[Tensor, "*b k"]:
    """Multiplies the first pairs of neighbouring channels, as complex numbers, by the table."""
    return replaced(x, as_complex(x, table.shape[-1]) * table)


def as_complex(x: Float[Tensor, "*b k"], pairs: int) -> Complex[Tensor, "*b {pairs}"]:
    """The first pairs of neighbouring channels, as complex numbers."""
    wide = x.to(widened(x.dtype))[..., : 2 * pairs]
    if any(stride % 2 for stride in wide.stride()[:-1]) or wide.stride(-1) != 1:
        wide = wide.contiguous()
    return torch.view_as_complex(wide.unflatten(-1, (-1, 2)))


def replaced(x: Float[Tensor, "*b k"], z: Complex[Tensor, "*b pairs"]) -> Float[Tensor, "*b k"]:
    """x with the complex numbers in place of its first pairs of channels."""
    turned = torch.view_as_real(z).flatten(-2).type_as(x)
    return (
        turned
        if turned.shape[-1] == x.shape[-1]
        else torch.cat((turned, x[..., turned.shape[-1] :]), dim=-1)
    )


def turn_within(
    x: Float[Tensor, "b h t k"], basis: Float[Tensor, "rows k"], table: Complex[Tensor, "t planes"]
) -> Float[Tensor, "b h t k"]:
    """`x + B^T (R - I) B x`: turns the planes that pairs of B's orthonormal rows span, and nothing else."""
    with torch.autocast(x.device.type, enabled=False):  # would round what the planes hold
        wide = x.to(basis.dtype)
        inside = turn(wide @ basis.T, table - 1)
        return (inside @ basis).add_(wide).type_as(x)


def orthogonal_planes(axis: Float[Tensor, "blocks 3"]) -> Float[Tensor, "blocks 2 3"]:
    """Two unit vectors for each unit axis, so that they and the axis are a right-handed orthonormal basis.

    Duff et al. 2017, "Building an orthonormal basis, revisited".
    """
    x, y, z = axis.unbind(-1)
    sign = torch.where(z < 0, -1.0, 1.0).to(axis)
    a = -1 / (sign + z)
    b = x * y * a
    first = torch.stack((1 + sign * x * x * a, sign * b, -sign * x), -1)
    return torch.stack((first, torch.stack((b, sign + y * y * a, -y), -1)), -2)


def block_diagonal(
    blocks: Float[Tensor, "n rows columns"], width: int
) -> Float[Tensor, "all_rows {width}"]:
    """The blocks along a diagonal, and columns of zeros up to `width`."""
    n, rows, columns = blocks.shape
    spread = torch.eye(n).to(blocks)[:, None, :, None] * blocks[:, :, None]
    return nn.functional.pad(spread.reshape(n * rows, n * columns), (0, width - n * columns))


def turns(
    frequency: tuple[float, ...] | Float[Tensor, "pairs"],
    offset: int,
    seq_len: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Complex[Tensor, "t pairs"]:
    """`exp(i position frequency)` for the positions from `offset` on; `dtype` is that of the real parts."""
    dtype = torch.promote_types(dtype, torch.complex64)
    if isinstance(frequency, tuple):
        return first(first_turns, (frequency,), offset, seq_len, device, dtype)
    frequency = exact(frequency)
    if torch.compiler.is_compiling():
        position = torch.arange(
            offset, offset + seq_len, dtype=torch.float64, device=frequency.device
        )
        return phasors(position, frequency).to(device, dtype)
    # turns of turns: few angles are computed, each as exactly as if it were the only one
    fine = torch.arange(STRIDE, dtype=torch.float64, device=frequency.device)
    coarse = torch.arange(
        offset, offset + seq_len, STRIDE, dtype=torch.float64, device=frequency.device
    )
    fine, coarse = (
        phasors(torch.cat((fine, coarse)), frequency).to(device, dtype).tensor_split((STRIDE,))
    )
    return (coarse[:, None] * fine).flatten(0, 1)[:seq_len]


def exact(parameter: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """In 64 bits."""
    return parameter.to(precise(parameter.device), torch.float64)


def precise(device: torch.device) -> torch.device:
    """Where to compute in 64 bits: the device, or the CPU where it cannot."""
    return torch.device("cpu") if device.type == "mps" else device


def first(
    make: Callable[..., Tensor],
    arguments: tuple,
    offset: int,
    seq_len: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Float[Tensor, "*n t k"] | Complex[Tensor, "*n t k"]:
    """Positions from `offset` on of the constant `make(*arguments, positions, device)`."""
    size = offset + seq_len
    if (
        not torch.compiler.is_compiling()
    ):  # lengths in powers of two: few tables, shared by all layers
        size = 1 << (size - 1).bit_length()
    return constant(make, (*arguments, size), device, dtype)[..., offset : offset + seq_len, :]


def constant(
    make: Callable[..., Tensor], arguments: tuple, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """What `make(*arguments, device)` gives, made once for each device and type; in a compiled graph, by the graph."""
    if torch.compiler.is_compiling():
        return make(*arguments, precise(device)).to(device, dtype)
    key = make, arguments, device, dtype
    if key not in _CONSTANTS:
        # what is first asked for in inference mode must serve training too
        with torch.inference_mode(False), torch.no_grad():
            made = make(*arguments, precise(device)).to(device, dtype)
        if type(made) is not Tensor:  # a tracer's stand-in for one
            return made
        _CONSTANTS[key] = made
    return _CONSTANTS[key]


def first_turns(
    frequencies: tuple[float, ...], size: int, device: torch.device
) -> Complex[Tensor, "{size} pairs"]:
    position = torch.arange(size, dtype=torch.float64, device=device)
    return phasors(position, torch.tensor(frequencies, dtype=torch.float64, device=device))


def phasors(
    position: Shaped[Tensor, "t"], frequency: Float[Tensor, "pairs"]
) -> Complex[Tensor, "t pairs"]:
    """`exp(i position frequency)`, in 64 bits: at position 100,000 an angle in 32 bits is wrong by 0.004 radians."""
    angle = torch.outer(position, frequency)
    return torch.complex(angle.cos(), angle.sin())
