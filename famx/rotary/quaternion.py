"""Unit quaternions turn blocks of three or four channels, each block about an axis of its own (seed.md)."""

from math import pi, sqrt

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from famx.registry import register
from famx.rotary.base import (
    as_complex,
    block_diagonal,
    constant,
    geometric,
    orthogonal_planes,
    pairs_of,
    replaced,
    turn_within,
    turns,
    widened,
)


@register
class QuaternionRotary(nn.Module):
    """`x <- x q`, `q = cos a + u sin a`, on blocks of four channels; of three `q x q*`, `q = cos(a/2) + u sin(a/2)`.

    The angle of block j is `a = t theta^(-j/blocks)`, its axis u a unit vector, one for all positions, so that scores
    depend on the distance. Of four channels, themselves a quaternion, all turn; two of them are of the first half,
    two of the second. Three, which are neighbours, turn about the axis. Channels left over pass unrotated.

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
        table = turns(self.frequencies, offset, x.shape[-2], x.device, widened(x.dtype))
        return self.by_three(x, table) if self.channels == 3 else self.by_four(x, table)

    def by_three(self, x: Float[Tensor, "b h t k"], table: Complex[Tensor, "t n"]) -> Float[Tensor, "b h t k"]:
        if self.axis is None:
            basis = constant(_planes, (len(self.frequencies), self.head_dim), x.device, widened(x.dtype))
        else:
            axis = normalize(self.axis.to(widened(x.dtype)), dim=-1)
            basis = block_diagonal(orthogonal_planes(axis), self.head_dim)
        return turn_within(x, basis, table)

    def by_four(self, x: Float[Tensor, "b h t k"], table: Complex[Tensor, "t n"]) -> Float[Tensor, "b h t k"]:
        n, dtype = table.shape[-1], widened(x.dtype)
        axis = constant(_spread, (n,), x.device, dtype) if self.axis is None else normalize(self.axis.to(dtype), dim=-1)
        i, j, k = axis.unbind(-1)
        # (a + b j)(c + d j) = (a c - b d*) + (a d + b c*) j
        c, d = torch.complex(table.real, table.imag * i), table.imag * torch.complex(j, k)
        z = as_complex(x, 2 * n)
        z = (z * torch.cat((c, c.conj()), -1)).addcmul_(z.roll(n, -1), torch.cat((-d.conj(), d), -1))
        return replaced(x, z)


def _spread(n: int) -> Float[Tensor, "{n} 3"]:
    """Unit vectors along a spiral over the sphere: each turns by the golden angle from the one before."""
    k = torch.arange(n, dtype=torch.float64)
    z, angle = 1 - (2 * k + 1) / n, pi * (3 - sqrt(5)) * k
    radius = (1 - z * z).sqrt()
    return torch.stack((radius * angle.cos(), radius * angle.sin(), z), dim=-1)


def _planes(blocks: int, head_dim: int) -> Float[Tensor, "rows {head_dim}"]:
    return block_diagonal(orthogonal_planes(_spread(blocks)), head_dim)
