"""Unit quaternions turn blocks of three or four channels, each block about an axis of its own (seed.md)."""

from math import pi, sqrt

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from famx.registry import register
from famx.rotary.base import (
    as_complex,
    first,
    first_turns,
    geometric,
    pairs_of,
    replaced,
    turns,
    widened,
)


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

    def __init__(
        self, head_dim: int, *, channels: int = 4, theta: float = 10000.0, learned: bool = False
    ):
        super().__init__()
        if channels not in (3, 4):
            raise ValueError(f"channels={channels} must be 3 or 4")
        pairs_of(head_dim, least=channels, theta=theta)
        self.n, self.channels = head_dim // channels, channels
        # one a pair of channels when a block is two pairs, else one a channel; a turn by 0 is exact
        self.frequencies = geometric(self.n, theta) * (3 if channels == 3 else 2)
        if channels == 3:
            self.frequencies += (0.0,) * (head_dim % 3)
        self.axis = nn.Parameter(_spread(self.n).float()) if learned else None

    def forward(self, x: Float[Tensor, "b h t k"], offset: int = 0) -> Float[Tensor, "b h t k"]:
        """Rotates position `offset + t`."""
        factors = self.factors(offset, x)
        return self.of_three(x, factors) if self.channels == 3 else self.of_four(x, factors)

    def factors(
        self, offset: int, x: Float[Tensor, "b h t k"]
    ) -> Float[Tensor, "3 t k"] | Complex[Tensor, "2 t n2"]:
        """What to multiply the blocks' channels by: themselves, the next ones of the block and so on around it."""
        dtype, seen = widened(x.dtype), (offset, x.shape[-2], x.device)
        if self.axis is not None:
            return _factors(
                normalize(self.axis.to(dtype), dim=-1),
                turns(self.frequencies, *seen, dtype),
                self.channels,
            )
        kind = dtype if self.channels == 3 else torch.promote_types(dtype, torch.complex64)
        return first(_fixed, (self.frequencies, self.n, self.channels), *seen, kind)

    def of_three(
        self, x: Float[Tensor, "b h t k"], factors: Float[Tensor, "3 t k"]
    ) -> Float[Tensor, "b h t k"]:
        wide, n, k = x.to(factors.dtype), self.n, x.shape[-1]
        # a channel left over gets some other, times 0: two pieces are faster to join than three
        following = torch.cat((wide[..., n : 3 * n], wide[..., : k - 2 * n]), dim=-1).mul_(
            factors[1]
        )
        last = torch.cat((wide[..., 2 * n : 3 * n], wide[..., : k - n]), dim=-1)
        return following.addcmul_(last, factors[2]).addcmul_(wide, factors[0]).type_as(x)

    def of_four(
        self, x: Float[Tensor, "b h t k"], factors: Complex[Tensor, "2 t n2"]
    ) -> Float[Tensor, "b h t k"]:
        z = as_complex(x, 2 * self.n)
        return replaced(x, z.roll(self.n, -1).mul_(factors[1]).addcmul_(z, factors[0]))


def _factors(
    axis: Float[Tensor, "n 3"], table: Complex[Tensor, "t columns"], channels: int
) -> Float[Tensor, "3 t columns"] | Complex[Tensor, "2 t columns"]:
    """See `QuaternionRotary.factors`."""
    i, j, k = axis.unbind(-1)
    cos, sin = table.real, table.imag
    if channels == 4:
        # (a + b j)(c + d j) = (a c - b d*) + (a d + b c*) j
        own, real, imag = torch.cat((i, -i)), torch.cat((-j, j)), torch.cat((k, k))
        return torch.stack((torch.complex(cos, sin * own), torch.complex(sin * real, sin * imag)))
    # cos x + (1 - cos) u (u . x) + sin u x x
    around = torch.stack([axis.roll(-s, 1).T for s in range(3)]).flatten(1)
    u, following, last = pad(around, (0, table.shape[-1] - 3 * len(axis)))
    along = (1 - cos) * u
    return torch.stack(
        (cos + along * u, along * following - sin * last, along * last + sin * following)
    )


def _fixed(
    frequencies: tuple[float, ...], n: int, channels: int, size: int, device: torch.device
) -> Float[Tensor, "3 {size} columns"] | Complex[Tensor, "2 {size} columns"]:
    return _factors(_spread(n).to(device), first_turns(frequencies, size, device), channels)


def _spread(n: int) -> Float[Tensor, "{n} 3"]:
    """Unit vectors along a spiral over the sphere: each turns by the golden angle from the one before."""
    k = torch.arange(n, dtype=torch.float64)
    z, angle = 1 - (2 * k + 1) / n, pi * (3 - sqrt(5)) * k
    radius = (1 - z * z).sqrt()
    return torch.stack((radius * angle.cos(), radius * angle.sin(), z), dim=-1)
