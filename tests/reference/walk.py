"""Tensors of each kind, with gradients for a part and its plain form: noise, slow or fast."""

import torch

KINDS = [
    ("conv", 0.9, 10),
    ("attention", 0.92, 12),
    ("embedding", 0.95, 8),
    ("norm", 0.9, 4),
    ("other", 0.9, 8),
]
SHAPES = [(20, 16, 3, 3), (64, 48), (40, 301), (12_000,), (30, 30)]
# sign of the steady part of the gradient from one step to the next; 0 for noise alone
SIGNS = (-1.0, 1.0, -1.0, 0.0, -1.0)


def tensors():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def gradients(steps):
    """Yields the gradients of each step: each tensor's are noise, slow, or fast in time."""
    generator = torch.Generator().manual_seed(4)
    noise = []
    for _ in range(steps):
        noise.append([torch.randn(shape, generator=generator) for shape in SHAPES])
    steady = [2 * torch.randn(shape, generator=generator) for shape in SHAPES]
    for t, row in enumerate(noise):
        yield [
            g + sign**t * signal * abs(sign)
            for g, signal, sign in zip(row, steady, SIGNS, strict=True)
        ]


def groups(params):
    return [
        {"params": [p], "kind": kind, "alpha": a, "n_bands": n}
        for p, (kind, a, n) in zip(params, KINDS, strict=True)
    ]


def walk(optimizer, params, reference, steps):
    """Takes the same steps with an optimizer and its plain form, and yields after each."""
    for row in gradients(steps):
        for p, gradient in zip(params, row, strict=True):
            p.grad = gradient
        optimizer.step()
        reference.step(row)
        yield


def close(params, expected):
    return all(
        torch.allclose(p, q, rtol=1e-5, atol=1e-5) for p, q in zip(params, expected, strict=True)
    )
