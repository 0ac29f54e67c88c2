"""Rotates in a learned subspace of few dimensions; the orthogonal part is unchanged (seed.md)."""

from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn

from famx.registry import register
from famx.rotary._channels import compute_dtype, orthogonal_planes, rotate_in_subspace
from famx.rotary._tables import rotation_table
from famx.rotary.base import Rotary, count_pairs, geometric_frequencies, scaled


@register
class ProjectedRotary(Rotary):
    """`x <- x + W^T (R(t) - I) W x`, a rotation of all channels: the rows of W are orthonormal.

    R rotates blocks of three dimensions about their diagonal, block j by the angle
    `t * scale * theta^(-j/blocks)`; the learned W determines the directions of x that are rotated.
    W is the Q of a QR decomposition of the weight, which starts as the orthonormal matrix nearest
    to a random one (by its SVD). An odd last channel is not projected.

    Args:
        proj_dim: dimensions of the subspace, a multiple of 3; it has proj_dim / 3 blocks.
        scale: frequency of the fastest block, in radians per position.
        theta: base of the series: the block after the last one would rotate theta times slower than
            the first.
        learned_freq: whether the frequencies are parameters, in radians per position.
    """

    def __init__(
        self,
        head_dim: int,
        *,
        proj_dim: int = 3,
        scale: float = 1.0,
        theta: float = 10000.0,
        learned_freq: bool = False,
    ):
        super().__init__()
        even = 2 * count_pairs(head_dim, scale=scale, theta=theta)
        if proj_dim % 3 or not 3 <= proj_dim <= even:
            raise ValueError(
                f"proj_dim={proj_dim} must be a multiple of 3 from 3 to {even}, "
                f"the even part of head_dim={head_dim}"
            )
        self.frequencies = scaled(geometric_frequencies(proj_dim // 3, theta), scale)
        self.frequency = nn.Parameter(torch.tensor(self.frequencies)) if learned_freq else None
        self.odd = head_dim - even
        # the orthonormal matrix nearest to a random one
        u, _, v = torch.linalg.svd(torch.randn(proj_dim, even), full_matrices=False)
        self.weight = nn.Parameter(u @ v)

    def forward(self, x: Float[Tensor, "b h t k"], offset: int = 0) -> Float[Tensor, "b h t k"]:
        """See `Rotary.forward`."""
        dtype = compute_dtype(x.dtype)
        rows = torch.linalg.qr(self.weight.to(dtype).T)[0].T
        # two directions of x for each block: the plane orthogonal to its diagonal
        planes = orthogonal_planes(rows.new_full((1, 3), 1 / sqrt(3)))
        with torch.autocast(x.device.type, enabled=False):  # would round the basis
            basis = (planes @ rows.unflatten(0, (-1, 3))).flatten(0, 1)
        frequency = self.frequencies if self.frequency is None else self.frequency
        table = rotation_table(frequency, offset, x.shape[-2], x.device, dtype)
        return rotate_in_subspace(x, nn.functional.pad(basis, (0, self.odd)), table)
