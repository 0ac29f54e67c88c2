"""What every norm promises: what a feedforward does, and that the size of its input does not matter."""

import torch

from famx.contracts import Contract, build_for_test, feedforward, require, require_finite
from famx.contracts.feedforward import D


def shape(part: type) -> None:
    feedforward.shape(part)


def dtype_kept(part: type) -> None:
    feedforward.dtype_kept(part)


def finite(part: type) -> None:
    feedforward.finite(part)


def positions_apart(part: type) -> None:
    feedforward.positions_apart(part)


def every_gradient(part: type) -> None:
    feedforward.every_gradient(part)


def size_forgotten(part: type) -> None:
    norm, x = build_for_test(part, d_model=D), torch.randn(2, 5, D)
    small, large = require_finite(norm(x), norm(1000 * x))
    require(
        torch.allclose(small, large, atol=1e-3), "an input 1000 times as large gives another output"
    )


CONTRACT: tuple[Contract, ...] = (
    shape,
    dtype_kept,
    finite,
    positions_apart,
    every_gradient,
    size_forgotten,
)
