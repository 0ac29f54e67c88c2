"""Rotates in a learned subspace of a few dimensions, and leaves what is orthogonal to it alone (seed.md)."""

from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn

from famx.registry import register
from famx.rotary.base import geometric, orthogonal_planes, pairs_of, turn_within, turns, widened


@register
class ProjectedRotary(nn.Module):
    """`x <- x + W^T (R(t) - I) W x`: W's rows are orthonormal, so that the whole is a rotation of all channels.

    R turns blocks of three about their diagonal, block j by the angle `t * theta^(-j/blocks)`; W, which is learned,
    says which directions of x these are. It is kept orthonormal as the Q of a QR decomposition, and starts as the
    nearest to a random matrix (by its SVD). An odd last channel is not projected.

    Args:
        proj_dim: dimensions of the subspace, a multiple of 3.
        theta: how many times slower the block after the last would turn.
    """

    def __init__(self, head_dim: int, *, proj_dim: int = 3, theta: float = 10000.0):
        super().__init__()
        even = 2 * pairs_of(head_dim, theta=theta)
        if proj_dim % 3 or not 3 <= proj_dim <= even:
            raise ValueError(
                f"proj_dim={proj_dim} must be a multiple of 3 from 3 to {even}, the even part of {head_dim=}"
            )
        self.frequencies, self.odd = geometric(proj_dim // 3, theta), head_dim - even
        u, _, v = torch.linalg.svd(torch.randn(proj_dim, even), full_matrices=False)
        self.weight = nn.Parameter(u @ v)

    def forward(self, x: Float[Tensor, "b h t k"], offset: int = 0) -> Float[Tensor, "b h t k"]:
        """Rotates position `offset + t`."""
        dtype = widened(x.dtype)
        rows = torch.linalg.qr(self.weight.to(dtype).T)[0].T
        planes = orthogonal_planes(rows.new_full((1, 3), 1 / sqrt(3)))
        with torch.autocast(x.device.type, enabled=False):  # would round the basis
            basis = (planes @ rows.unflatten(0, (-1, 3))).flatten(0, 1)
        table = turns(self.frequencies, offset, x.shape[-2], x.device, dtype)
        return turn_within(x, nn.functional.pad(basis, (0, self.odd)), table)
