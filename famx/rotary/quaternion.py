"""Unit quaternions turn blocks of three or four channels about an axis for each block (seed.md)."""

from math import pi, sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from famx.registry import register
from famx.rotary.base import (
    block_diagonal,
    constant,
    geometric,
    orthogonal_planes,
    pairs_of,
    turn_within,
    turns,
    widened,
)


@register
class QuaternionRotary(nn.Module):
    """`x <- q x q*` on blocks of three channels, `q = cos(a/2) + u sin(a/2)`; of four `q x`, `q = cos a + u sin a`.

    The angle of block j is `a = t theta^(-j/blocks)`, its axis u a unit vector. Three channels turn about the axis;
    four, themselves a quaternion, turn in two planes at once, so that none stands still. As u is one for all
    positions, scores depend on the distance. Channels left over pass unrotated.

    Args:
        channels: of a block, 3 or 4.
        theta: how many times slower the block after the last would turn.
        learned: the axes are parameters; else they are spread evenly over the sphere.
    """

    def __init__(self, head_dim: int, *, channels: int = 3, theta: float = 10000.0, learned: bool = False):
        super().__init__()
        if channels not in (3, 4):
            raise ValueError(f"channels={channels} must be 3 or 4")
        pairs_of(head_dim, least=channels, theta=theta)
        self.head_dim, self.channels = head_dim, channels
        self.frequencies = geometric(head_dim // channels, theta)
        self.axis = nn.Parameter(_spread(len(self.frequencies)).float()) if learned else None

    def forward(self, x: Float[Tensor, "b h t k"], offset: int = 0) -> Float[Tensor, "b h t k"]:
        """Rotates position `offset + t`."""
        make, dtype = _planes if self.channels == 3 else _products, widened(x.dtype)
        if self.axis is None:
            matrix = constant(_fixed, (make, len(self.frequencies), self.head_dim), x.device, dtype)
        else:
            matrix = make(normalize(self.axis.to(dtype), dim=-1), self.head_dim)
        if self.channels == 3:
            return turn_within(x, matrix, turns(self.frequencies, offset, x.shape[-2], x.device, dtype))
        each = tuple(f for f in self.frequencies for _ in range(4)) + (0.0,) * (self.head_dim % 4)
        table = turns(each, offset, x.shape[-2], x.device, dtype)
        with torch.autocast(x.device.type, enabled=False):  # would round the products
            wide = x.to(dtype)
            return torch.addcmul(wide @ matrix * table.imag, wide, table.real).type_as(x)


def _spread(n: int) -> Float[Tensor, "{n} 3"]:
    """Unit vectors along a spiral over the sphere: each turns by the golden angle from the one before."""
    k = torch.arange(n, dtype=torch.float64)
    z, angle = 1 - (2 * k + 1) / n, pi * (3 - sqrt(5)) * k
    radius = (1 - z * z).sqrt()
    return torch.stack((radius * angle.cos(), radius * angle.sin(), z), dim=-1)


def _fixed(make, blocks: int, head_dim: int) -> Float[Tensor, "rows {head_dim}"]:
    return make(_spread(blocks), head_dim)


def _planes(axis: Float[Tensor, "blocks 3"], head_dim: int) -> Float[Tensor, "rows {head_dim}"]:
    """The plane around each axis, two rows a block."""
    return block_diagonal(orthogonal_planes(axis), head_dim)


def _products(axis: Float[Tensor, "blocks 3"], head_dim: int) -> Float[Tensor, "{head_dim} {head_dim}"]:
    """What multiplies each block from the right as its axis does as a quaternion from the left."""
    (x, y, z), o = axis.unbind(-1), torch.zeros_like(axis[:, 0])
    rows = ((o, x, y, z), (-x, o, z, -y), (-y, -z, o, x), (-z, y, -x, o))
    blocks = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    matrix = block_diagonal(blocks, head_dim)
    return pad(matrix, (0, 0, 0, head_dim - len(matrix)))
