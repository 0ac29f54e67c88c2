"""Contracts of feedforward blocks; norms keep them too."""

import torch
from torch import nn

from famx.contracts import Contract, build_for_test, require, require_finite

# parts are typed as modules, since the base classes of both rooms declare no more than `forward`
D_MODEL = 24


def shape(part: type[nn.Module]) -> None:
    """The output has the shape of the input."""
    x = torch.randn(2, 5, D_MODEL)
    y = build_for_test(part, d_model=D_MODEL)(x)
    require(y.shape == x.shape, f"turns {tuple(x.shape)} into {tuple(y.shape)}")


def dtype_unchanged(part: type[nn.Module]) -> None:
    """The output has the dtype of the input and the module."""
    for dtype in (torch.bfloat16, torch.float64):
        module = build_for_test(part, d_model=D_MODEL).to(dtype)
        y = module(torch.randn(2, 5, D_MODEL, dtype=dtype))
        require(y.dtype == dtype, f"turns {dtype} into {y.dtype}")


def finite(part: type[nn.Module]) -> None:
    """Zero and large inputs have finite outputs and gradients."""
    # a norm must not divide by the norm of zeros
    for scale in (0.0, 1000.0):
        x = (scale * torch.randn(2, 5, D_MODEL)).requires_grad_()
        y = build_for_test(part, d_model=D_MODEL)(x)
        y.sum().backward()
        require(y.isfinite().all(), f"an input of size {scale} gives an output that is not finite")
        require(
            x.grad is not None and x.grad.isfinite().all(),
            f"an input of size {scale} gives a gradient that is not finite",
        )


def positions_independent(part: type[nn.Module]) -> None:
    """The output at a position depends on the input at that position alone."""
    module = build_for_test(part, d_model=D_MODEL).eval()
    x = torch.randn(2, 5, D_MODEL)
    # one position inside a sequence, and as a sequence of its own
    in_sequence, alone = require_finite(module(x)[:, 2:3], module(x[:, 2:3]))
    require(
        torch.allclose(in_sequence, alone, atol=1e-5),
        "the output at t=2 depends on other positions",
    )


def every_gradient(part: type[nn.Module]) -> None:
    """Every parameter gets a gradient."""
    module = build_for_test(part, d_model=D_MODEL)
    y = module(torch.randn(2, 5, D_MODEL))
    # random weights, since the plain sum of what layernorm returns is constant
    (y * torch.randn(2, 5, D_MODEL)).sum().backward()
    for name, p in module.named_parameters():
        require(p.grad is not None and p.grad.any(), f"parameter {name} gets no gradient")


CONTRACT: tuple[Contract, ...] = (
    shape,
    dtype_unchanged,
    finite,
    positions_independent,
    every_gradient,
)
ESSENTIAL: tuple[Contract, ...] = (
    shape,
    finite,
    positions_independent,
    every_gradient,
)
