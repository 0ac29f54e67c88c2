"""What every feedforward promises."""

import torch

from famx.contracts import Contract, build_for_test, require, require_finite

D = 24


def shape(part: type) -> None:
    x = torch.randn(2, 5, D)
    y = build_for_test(part, d_model=D)(x)
    require(y.shape == x.shape, f"turns {tuple(x.shape)} into {tuple(y.shape)}")


def dtype_kept(part: type) -> None:
    for dtype in (torch.bfloat16, torch.float64):
        y = build_for_test(part, d_model=D).to(dtype)(torch.randn(2, 5, D, dtype=dtype))
        require(y.dtype == dtype, f"turns {dtype} into {y.dtype}")


def finite(part: type) -> None:
    for scale in (0.0, 1000.0):
        x = (scale * torch.randn(2, 5, D)).requires_grad_()
        y = build_for_test(part, d_model=D)(x)
        y.sum().backward()
        require(y.isfinite().all(), f"an input of size {scale} gives an output that is not finite")
        require(
            x.grad.isfinite().all(), f"an input of size {scale} gives a gradient that is not finite"
        )


def positions_apart(part: type) -> None:
    module, x = build_for_test(part, d_model=D).eval(), torch.randn(2, 5, D)
    among, alone = require_finite(module(x)[:, 2:3], module(x[:, 2:3]))
    require(torch.allclose(among, alone, atol=1e-5), "the output at t=2 depends on other positions")


def every_gradient(part: type) -> None:
    module = build_for_test(part, d_model=D)
    (module(torch.randn(2, 5, D)) * torch.randn(2, 5, D)).sum().backward()
    for name, p in module.named_parameters():
        require(p.grad is not None and p.grad.any(), f"parameter {name} gets no gradient")


CONTRACT: tuple[Contract, ...] = (
    shape,
    dtype_kept,
    finite,
    positions_apart,
    every_gradient,
)
