"""The rotaries' rotations as explicit matrices in double precision, one for each position."""

import torch


def apply_matrices(matrices, x):
    """Multiplies each position of x, (b, h, t, k), by its own matrix."""
    rows = []
    for t, matrix in enumerate(matrices):
        rows.append(x[:, :, t].double() @ matrix.T)
    return torch.stack(rows, dim=2)


def plane_rotation(head_dim, i, j, angle):
    """Returns the Givens rotation by an angle in the plane of channels i and j, from i toward j."""
    matrix = torch.eye(head_dim, dtype=torch.float64)
    angle = torch.tensor(float(angle), dtype=torch.float64)
    matrix[i, i] = angle.cos()
    matrix[j, j] = angle.cos()
    matrix[i, j] = -angle.sin()
    matrix[j, i] = angle.sin()
    return matrix


def plane_rotations(head_dim, pairs, angles):
    """Returns the product of rotations in disjoint planes."""
    matrix = torch.eye(head_dim, dtype=torch.float64)
    for (i, j), angle in zip(pairs, angles, strict=True):
        matrix = plane_rotation(head_dim, i, j, angle) @ matrix
    return matrix


def neighbour_pairs(head_dim):
    """Returns the pairs of neighbouring channels."""
    return [(i, i + 1) for i in range(0, head_dim - 1, 2)]


def axis_rotation(axis, angle):
    """Returns the rotation about an axis as the matrix of `x + 2 w (v x x) + 2 v x (v x x)`.

    v = sin(angle/2) axis, w = cos(angle/2).
    """
    axis = axis.double()
    half = torch.tensor(float(angle), dtype=torch.float64) / 2
    w = half.cos()
    v = half.sin() * axis / axis.norm()
    columns = []
    for x in torch.eye(3, dtype=torch.float64):
        cross = torch.linalg.cross(v, x)
        columns.append(x + 2 * w * cross + 2 * torch.linalg.cross(v, cross))
    return torch.stack(columns, dim=1)


def quaternion_product(p, q):
    """Returns Hamilton's product of two quaternions, real part first."""
    real = p[0] * q[0] - p[1:] @ q[1:]
    imaginary = p[0] * q[1:] + q[0] * p[1:] + torch.linalg.cross(p[1:], q[1:])
    return torch.cat((real[None], imaginary))


def right_multiplication(axis, angle):
    """Returns the matrix of a multiplication from the right by cos(angle) + axis sin(angle)."""
    angle = torch.tensor(float(angle), dtype=torch.float64)
    axis = axis.double() / axis.double().norm()
    q = torch.cat((angle.cos()[None], angle.sin() * axis))
    columns = [quaternion_product(unit, q) for unit in torch.eye(4, dtype=torch.float64)]
    return torch.stack(columns, dim=1)


def block_matrix(head_dim, channels, matrices):
    """Returns a matrix that transforms each block of channels and passes all other channels."""
    result = torch.eye(head_dim, dtype=torch.float64)
    for block, matrix in zip(channels, matrices, strict=True):
        for row, i in enumerate(block):
            for column, j in enumerate(block):
                result[i, j] = matrix[row, column]
    return result
