"""The same gradients for a part and for its plain form: noise, slow or fast in time, on a tensor of each kind."""

import torch

KINDS = [
    ("conv", 0.9, 10),
    ("attention", 0.92, 12),
    ("embedding", 0.95, 8),
    ("norm", 0.9, 4),
    ("other", 0.9, 8),
]
SHAPES = [(20, 16, 3, 3), (64, 48), (40, 301), (12_000,), (30, 30)]


def tensors():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def gradients(steps):
    """Each tensor's gradients are noise, slow, or fast in time."""
    generator = torch.Generator().manual_seed(4)
    rows = [[torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(steps)]
    steady = [2 * torch.randn(shape, generator=generator) for shape in SHAPES]
    signs = [(-1.0, 0), (1.0, 1), (-1.0, 2), (0.0, 3), (-1.0, 4)]
    for t, row in enumerate(rows):
        yield [g + sign**t * steady[i] * abs(sign) for g, (sign, i) in zip(row, signs, strict=True)]


def groups(params):
    return [
        {"params": [p], "kind": kind, "alpha": a, "n_bands": n}
        for p, (kind, a, n) in zip(params, KINDS, strict=True)
    ]


def walk(optimizer, params, reference, steps):
    """Takes the same steps in both, and yields after each."""
    for row in gradients(steps):
        for p, gradient in zip(params, row, strict=True):
            p.grad = gradient
        optimizer.step()
        reference.step(row)
        yield


def close(params, others):
    return all(
        torch.allclose(p, other, rtol=1e-5, atol=1e-5)
        for p, other in zip(params, others, strict=True)
    )
