"""Rotates blocks of three or four channels by unit quaternions about their own axes (seed.md)."""

from math import pi, sqrt

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from famx.registry import register
from famx.rotary._channels import complex_pairs, compute_dtype, replace_pairs
from famx.rotary._tables import constant, phasor_table, positions, rotation_table
from famx.rotary.base import Rotary, count_pairs, geometric_frequencies, scaled


@register
class QuaternionRotary(Rotary):
    """Multiplies block j of the channels by a quaternion of an angle `a` that grows with position.

    `a = t * scale * theta^(-j/blocks)` for block j.
    Four channels: `x <- x q`, `q = cos a + u sin a`. The block is itself a quaternion, and all of
    it rotates; block j of n is the j-th pair of neighbours and the (n + j)-th.
    Three channels: `x <- q x q*`, `q = cos(a/2) + u sin(a/2)`, which rotates the channels j, n + j
    and 2 n + j about the axis.
    The axis u of a block is a unit vector, the same at all positions, so that scores depend on the
    distance alone. The last channels, too few for a block, pass unrotated.

    Args:
        channels: size of a block, 3 or 4.
        scale: frequency of the fastest block, in radians per position.
        theta: base of the series: the block after the last one would rotate theta times slower than
            the first.
        learned: whether the axes are parameters; otherwise they are spread evenly over the sphere.
        learned_freq: whether the frequencies are parameters, in radians per position.
    """

    def __init__(
        self,
        head_dim: int,
        *,
        channels: int = 4,
        scale: float = 1.0,
        theta: float = 10000.0,
        learned: bool = False,
        learned_freq: bool = False,
    ):
        super().__init__()
        if channels not in (3, 4):
            raise ValueError(f"channels={channels} must be 3 or 4")
        count_pairs(head_dim, minimum=channels, scale=scale, theta=theta)
        self.channels = channels
        self.n = head_dim // channels
        # one frequency per pair of channels in blocks of four, else one per channel; the channels
        # that remain rotate by 0, which is exact
        frequencies = scaled(geometric_frequencies(self.n, theta), scale)
        self.copies = 2 if channels == 4 else 3
        self.unrotated = 0 if channels == 4 else head_dim % 3
        self.frequencies = frequencies * self.copies + (0.0,) * self.unrotated
        self.frequency = nn.Parameter(torch.tensor(frequencies)) if learned_freq else None
        self.axis = nn.Parameter(_spiral(self.n).float()) if learned else None

    def forward(self, x: Float[Tensor, "b h t k"], offset: int = 0) -> Float[Tensor, "b h t k"]:
        """See `Rotary.forward`."""
        factors = self.factors(offset, x)
        if self.channels == 3:
            return self.rotate_threes(x, factors)
        return self.rotate_fours(x, factors)

    def factors(
        self, offset: int, x: Float[Tensor, "b h t k"]
    ) -> Float[Tensor, "3 t k"] | Complex[Tensor, "2 t n2"]:
        """Returns the factors of each channel (or pair), and of the next ones of its block."""
        dtype = compute_dtype(x.dtype)
        seq_len = x.shape[-2]
        if self.axis is not None or self.frequency is not None:
            frequencies: tuple[float, ...] | Tensor = self.frequencies
            if self.frequency is not None:
                frequencies = pad(self.frequency.repeat(self.copies), (0, self.unrotated))
            table = rotation_table(frequencies, offset, seq_len, x.device, dtype)
            return _factors(self.axes(x.device, dtype), table, self.channels)
        # four channels are two complex numbers
        if self.channels == 4:
            dtype = torch.promote_types(dtype, torch.complex64)
        arguments = (self.frequencies, self.n, self.channels)
        return positions(_constant_factors, arguments, offset, seq_len, x.device, dtype)

    def axes(self, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "n 3"]:
        """Returns the unit axis of each block."""
        if self.axis is None:
            return constant(_spiral_on, (self.n,), device, dtype)
        return normalize(self.axis.to(dtype), dim=-1)

    def rotate_threes(
        self, x: Float[Tensor, "b h t k"], factors: Float[Tensor, "3 t k"]
    ) -> Float[Tensor, "b h t k"]:
        """Rotates blocks of three channels about their axes."""
        wide = x.to(factors.dtype)
        n = self.n
        k = x.shape[-1]
        # channels in no block get another channel times 0, since joining two pieces is faster than
        # joining three
        second = torch.cat((wide[..., n : 3 * n], wide[..., : k - 2 * n]), dim=-1)
        third = torch.cat((wide[..., 2 * n : 3 * n], wide[..., : k - n]), dim=-1)
        rotated = second.mul_(factors[1]).addcmul_(third, factors[2])
        return rotated.addcmul_(wide, factors[0]).type_as(x)

    def rotate_fours(
        self, x: Float[Tensor, "b h t k"], factors: Complex[Tensor, "2 t n2"]
    ) -> Float[Tensor, "b h t k"]:
        """Multiplies blocks of four channels by their quaternions."""
        # the other pair of a block is n pairs away
        z = complex_pairs(x, 2 * self.n)
        rotated = z.roll(self.n, -1).mul_(factors[1]).addcmul_(z, factors[0])
        return replace_pairs(x, rotated)


def _factors(
    axis: Float[Tensor, "n 3"], table: Complex[Tensor, "t columns"], channels: int
) -> Float[Tensor, "3 t columns"] | Complex[Tensor, "2 t columns"]:
    """See `QuaternionRotary.factors`."""
    cos = table.real
    sin = table.imag
    if channels == 4:
        # (a + b j)(c + d j) = (a c - b d*) + (a d + b c*) j
        i, j, k = axis.unbind(-1)
        same = torch.complex(cos, sin * torch.cat((i, -i)))
        cross = torch.complex(sin * torch.cat((-j, j)), sin * torch.cat((k, k)))
        return torch.stack((same, cross))
    # cos x + (1 - cos) u (u . x) + sin u x x
    cycled = torch.stack([axis.roll(-shift, 1).T for shift in range(3)]).flatten(1)
    u, second, third = pad(cycled, (0, table.shape[-1] - 3 * len(axis)))
    along = (1 - cos) * u
    return torch.stack(
        (cos + along * u, along * second - sin * third, along * third + sin * second)
    )


def _constant_factors(
    frequencies: tuple[float, ...], n: int, channels: int, size: int, device: torch.device
) -> Float[Tensor, "3 {size} columns"] | Complex[Tensor, "2 {size} columns"]:
    """Returns the factors at the positions 0 to size - 1 about axes that are not learned."""
    return _factors(_spiral(n).to(device), phasor_table(frequencies, size, device), channels)


def _spiral_on(n: int, device: torch.device) -> Float[Tensor, "{n} 3"]:
    """Returns the axes that are not learned."""
    return _spiral(n).to(device)


def _spiral(n: int) -> Float[Tensor, "{n} 3"]:
    """Returns unit vectors along a spiral over the sphere, each the golden angle after the last."""
    k = torch.arange(n, dtype=torch.float64)
    z = 1 - (2 * k + 1) / n
    angle = pi * (3 - sqrt(5)) * k
    radius = (1 - z * z).sqrt()
    return torch.stack((radius * angle.cos(), radius * angle.sin(), z), dim=-1)
