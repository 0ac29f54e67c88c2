"""Rotations of the channels of a vector: pairs as complex numbers, planes of a subspace, blocks."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from famx import kernels


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype in which a rotation of `dtype` is computed: at least 32 bits."""
    return torch.promote_types(dtype, torch.float32)


def rotate(x: Float[Tensor, "*b k"], table: Complex[Tensor, "*#b pairs"]) -> Float[Tensor, "*b k"]:
    """Multiplies the first pairs of neighbouring channels, as complex numbers, by the table."""
    if torch.compiler.is_compiling():
        return _rotate_real(x, table)
    if kernels.available(x.device):
        from famx.kernels import rotate as kernel

        if kernel.supports(x, table):
            return kernel.rotate(x, table)
    return replace_pairs(x, complex_pairs(x, table.shape[-1]) * table)


def _rotate_real(
    x: Float[Tensor, "*b k"], table: Complex[Tensor, "*#b pairs"]
) -> Float[Tensor, "*b k"]:
    """Computes the same with real numbers, since a compiler cannot fuse complex ones."""
    pairs = table.shape[-1]
    wide = x.to(compute_dtype(x.dtype))[..., : 2 * pairs].unflatten(-1, (-1, 2))
    real, imaginary = wide.unbind(-1)
    cosine = table.real
    sine = table.imag
    rotated = torch.stack(
        (real * cosine - imaginary * sine, real * sine + imaginary * cosine), dim=-1
    )
    rotated = rotated.flatten(-2).type_as(x)
    if 2 * pairs == x.shape[-1]:
        return rotated
    return torch.cat((rotated, x[..., 2 * pairs :]), dim=-1)


def complex_pairs(x: Float[Tensor, "*b k"], pairs: int) -> Complex[Tensor, "*b {pairs}"]:
    """Returns the first pairs of neighbouring channels as complex numbers."""
    wide = x.to(compute_dtype(x.dtype))[..., : 2 * pairs]
    # `view_as_complex` needs neighbouring channels in memory, and pairs that begin at even indices
    if any(stride % 2 for stride in wide.stride()[:-1]) or wide.stride(-1) != 1:
        wide = wide.contiguous()
    return torch.view_as_complex(wide.unflatten(-1, (-1, 2)))


def replace_pairs(
    x: Float[Tensor, "*b k"], z: Complex[Tensor, "*b pairs"]
) -> Float[Tensor, "*b k"]:
    """Returns x with its first pairs of channels replaced by the complex numbers."""
    rotated = torch.view_as_real(z).flatten(-2).type_as(x)
    n = rotated.shape[-1]
    if n == x.shape[-1]:
        return rotated
    return torch.cat((rotated, x[..., n:]), dim=-1)


def rotate_in_subspace(
    x: Float[Tensor, "b h t k"], basis: Float[Tensor, "rows k"], table: Complex[Tensor, "t planes"]
) -> Float[Tensor, "b h t k"]:
    """Returns `x + B^T (R - I) B x`: x rotated in the planes of a subspace and nowhere else.

    Args:
        basis: B, whose rows are orthonormal; each plane is spanned by a pair of rows.
        table: R, the factor of each plane at each position.
    """
    with torch.autocast(x.device.type, enabled=False):  # would round the coordinates
        # coordinates in the planes, their change by R - I, and back to channels
        wide = x.to(basis.dtype)
        change = rotate(wide @ basis.T, table - 1)
        return (change @ basis).add_(wide).type_as(x)


def orthogonal_planes(axis: Float[Tensor, "blocks 3"]) -> Float[Tensor, "blocks 2 3"]:
    """Returns two unit vectors that complete each unit axis to a right-handed orthonormal basis.

    Duff et al. 2017, "Building an orthonormal basis, revisited".
    """
    x, y, z = axis.unbind(-1)
    sign = torch.where(z < 0, -1.0, 1.0).to(axis)
    a = -1 / (sign + z)
    b = x * y * a
    first = torch.stack((1 + sign * x * x * a, sign * b, -sign * x), -1)
    second = torch.stack((b, sign + y * y * a, -y), -1)
    return torch.stack((first, second), -2)


def block_diagonal(
    blocks: Float[Tensor, "n rows columns"], width: int
) -> Float[Tensor, "all_rows {width}"]:
    """Returns a matrix with the blocks along its diagonal, padded with zeros to `width` columns."""
    n, rows, columns = blocks.shape
    # (n, rows, n, columns), zero except where both block indices are equal
    matrix = torch.eye(n).to(blocks)[:, None, :, None] * blocks[:, :, None]
    return nn.functional.pad(matrix.reshape(n * rows, n * columns), (0, width - n * columns))
