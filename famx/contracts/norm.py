"""Contracts of norms: those of feedforward blocks, and independence of the scale of the input."""

import torch
from torch import nn

from famx.contracts import Contract, build_for_test, feedforward, require, require_finite
from famx.contracts.feedforward import D_MODEL


def scale_invariant(part: type[nn.Module]) -> None:
    """The output does not depend on the scale of the input."""
    norm = build_for_test(part, d_model=D_MODEL)
    x = torch.randn(2, 5, D_MODEL)
    # up to the constant by which norms avoid a division by zero
    small, large = require_finite(norm(x), norm(1000 * x))
    require(
        torch.allclose(small, large, atol=1e-3), "an input 1000 times as large changes the output"
    )


CONTRACT: tuple[Contract, ...] = (*feedforward.CONTRACT, scale_invariant)
ESSENTIAL: tuple[Contract, ...] = feedforward.ESSENTIAL
