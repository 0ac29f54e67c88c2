"""Unit quaternions turn blocks of three or four channels, each block about an axis of its own (seed.md)."""

from math import pi, sqrt

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from famx.registry import register
from famx.rotary.base import as_complex, first, first_turns, geometric, pairs_of, replaced, turns, widened


@register
class QuaternionRotary(nn.Module):
    """`x <- x q`, `q = cos a + u sin a`, on blocks of four channels; of three `q x q*`, `q = cos(a/2) + u sin(a/2)`.

    The angle of block j is `a = t theta^(-j/blocks)`, its axis u a unit vector, one for all positions, so that scores
    depend on the distance. Of four channels, themselves a quaternion, all turn: block j of n is the j-th pair of
    neighbours and the (n + j)-th. Three, the channels j, n + j and 2 n + j, turn about the axis. Channels left over,
    the last, pass unrotated.

    Args:
        channels: of a block, 3 or 4.
        theta: how many times slower the block after the last would turn.
        learned: the axes are parameters; else they are spread evenly over the sphere.
    """

    def __init__(self, head_dim: int, *, channels: int = 4, theta: float = 10000.0, learned: bool = False):
        super().__init__()
        if channels not in (3, 4):
            raise ValueError(f"channels={channels} must be 3 or 4")
        pairs_of(head_dim, least=channels, theta=theta)
        self.head_dim, self.channels = head_dim, channels
        self.frequencies = geometric(head_dim // channels, theta)
        self.axis = nn.Parameter(_spread(len(self.frequencies)).float()) if learned else None

    def forward(self, x: Float[Tensor, "b h t k"], offset: int = 0) -> Float[Tensor, "b h t k"]:
        """Rotates position `offset + t`."""
        factors = self.factors(offset, x)
        return self.of_three(x, factors) if self.channels == 3 else self.of_four(x, factors)

    def factors(self, offset: int, x: Float[Tensor, "b h t k"]) -> Float[Tensor, "3 t k"] | Complex[Tensor, "2 t n2"]:
        """What to multiply the blocks' channels by: themselves, the next ones of the block and so on around it."""
        dtype, seen = widened(x.dtype), (offset, x.shape[-2], x.device)
        if self.axis is not None:
            axis = normalize(self.axis.to(dtype), dim=-1)
            return _factors(axis, turns(self.frequencies, *seen, dtype), self.channels, self.head_dim)
        kind = dtype if self.channels == 3 else torch.promote_types(dtype, torch.complex64)
        return first(_fixed, (self.frequencies, self.channels, self.head_dim), *seen, kind)

    def of_three(self, x: Float[Tensor, "b h t k"], factors: Float[Tensor, "3 t k"]) -> Float[Tensor, "b h t k"]:
        x_wide, n = x.to(factors.dtype), len(self.frequencies)
        # a channel left over gets some other, times 0: two pieces are faster to join than three
        following, last = (
            torch.cat((x_wide[..., s * n : 3 * n], x_wide[..., : self.head_dim - (3 - s) * n]), dim=-1) for s in (1, 2)
        )
        return following.mul_(factors[1]).addcmul_(last, factors[2]).addcmul_(x_wide, factors[0]).type_as(x)

    def of_four(self, x: Float[Tensor, "b h t k"], factors: Complex[Tensor, "2 t n2"]) -> Float[Tensor, "b h t k"]:
        z = as_complex(x, factors.shape[-1])
        return replaced(x, z.roll(len(self.frequencies), -1).mul_(factors[1]).addcmul_(z, factors[0]))


def _factors(
    axis: Float[Tensor, "n 3"], table: Complex[Tensor, "t n"], channels: int, head_dim: int
) -> Float[Tensor, "3 t {head_dim}"] | Complex[Tensor, "2 t n2"]:
    """See `QuaternionRotary.factors`."""
    i, j, k = axis.unbind(-1)
    cos, sin = table.real, table.imag
    if channels == 4:
        # (a + b j)(c + d j) = (a c - b d*) + (a d + b c*) j
        c, d = torch.complex(cos, sin * i), sin * torch.complex(j, k)
        return torch.stack((torch.cat((c, c.conj()), -1), torch.cat((-d.conj(), d), -1)))
    # cos x + (1 - cos) u (u . x) + sin u x x
    u, versed, rest = (i, j, k), 1 - cos, table.real.new_zeros(len(table), head_dim - 3 * len(axis))
    return torch.stack(
        (
            torch.cat([*(cos + versed * u[g] * u[g] for g in range(3)), rest + 1], -1),
            torch.cat([*(versed * u[g] * u[g - 2] - sin * u[g - 1] for g in range(3)), rest], -1),
            torch.cat([*(versed * u[g] * u[g - 1] + sin * u[g - 2] for g in range(3)), rest], -1),
        )
    )


def _fixed(
    frequencies: tuple[float, ...], channels: int, head_dim: int, size: int
) -> Float[Tensor, "3 {size} {head_dim}"] | Complex[Tensor, "2 {size} n2"]:
    return _factors(_spread(len(frequencies)), first_turns(frequencies, size), channels, head_dim)


def _spread(n: int) -> Float[Tensor, "{n} 3"]:
    """Unit vectors along a spiral over the sphere: each turns by the golden angle from the one before."""
    k = torch.arange(n, dtype=torch.float64)
    z, angle = 1 - (2 * k + 1) / n, pi * (3 - sqrt(5)) * k
    radius = (1 - z * z).sqrt()
    return torch.stack((radius * angle.cos(), radius * angle.sin(), z), dim=-1)
