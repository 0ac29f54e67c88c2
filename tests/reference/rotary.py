"""The rotaries' rotations as explicit matrices, one a position, in double precision, applied one by one."""

import torch


def applied(matrices, x):
    """Each position of x, (b, h, t, k), by its own matrix."""
    rows = [x[:, :, t].double() @ matrix.T for t, matrix in enumerate(matrices)]
    return torch.stack(rows, dim=2)


def plane(head_dim, i, j, angle):
    """The Givens rotation by an angle in the plane of channels i and j, from i toward j."""
    matrix = torch.eye(head_dim, dtype=torch.float64)
    angle = torch.tensor(float(angle), dtype=torch.float64)
    cos, sin = angle.cos(), angle.sin()
    matrix[i, i], matrix[j, j], matrix[i, j], matrix[j, i] = cos, cos, -sin, sin
    return matrix


def planes(head_dim, pairs, angles):
    """Rotations in disjoint planes, one after another."""
    matrix = torch.eye(head_dim, dtype=torch.float64)
    for (i, j), angle in zip(pairs, angles, strict=True):
        matrix = plane(head_dim, i, j, angle) @ matrix
    return matrix


def neighbours(head_dim):
    return [(i, i + 1) for i in range(0, head_dim - 1, 2)]


def about(axis, angle):
    """`x + 2 w (v x x) + 2 v x (v x x)` with v = sin(angle/2) axis, w = cos(angle/2), on each unit vector."""
    axis, half = axis.double(), torch.tensor(float(angle), dtype=torch.float64) / 2
    w, v = half.cos(), half.sin() * axis / axis.norm()
    columns = []
    for x in torch.eye(3, dtype=torch.float64):
        across = torch.linalg.cross(v, x)
        columns.append(x + 2 * w * across + 2 * torch.linalg.cross(v, across))
    return torch.stack(columns, dim=1)


def product(p, q):
    """Hamilton's product of two quaternions (real part first)."""
    real = p[0] * q[0] - p[1:] @ q[1:]
    return torch.cat((real[None], p[0] * q[1:] + q[0] * p[1:] + torch.linalg.cross(p[1:], q[1:])))


def times(axis, angle):
    """What multiplies a quaternion from the right by cos(angle) + axis sin(angle)."""
    angle, axis = (
        torch.tensor(float(angle), dtype=torch.float64),
        axis.double() / axis.double().norm(),
    )
    q = torch.cat((angle.cos()[None], angle.sin() * axis))
    return torch.stack([product(unit, q) for unit in torch.eye(4, dtype=torch.float64)], dim=1)


def blocks(head_dim, channels, matrices):
    """A matrix for each block of channels; the others pass."""
    whole = torch.eye(head_dim, dtype=torch.float64)
    for block, matrix in zip(channels, matrices, strict=True):
        for row, i in enumerate(block):
            for column, j in enumerate(block):
                whole[i, j] = matrix[row, column]
    return whole
