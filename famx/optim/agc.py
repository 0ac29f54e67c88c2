"""Adaptive gradient clipping around another optimizer, unit by unit (arXiv:2102.06171)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from famx.optim.around import Around
from famx.registry import register


@register
class AGC(Around):
    """The base sees g_i·min(1, clip·max(‖θ_i‖, eps) / ‖g_i‖), i the rows of matrices and the output channels of
    convolutions; a vector is one unit.

    Args:
        params: an optimizer, or parameters or groups over which the base is built.
        momentum: factory of the rule that the base wears.
        spectrum: factory of what that rule measures with.
        base: name of the optimizer.
        lr: its learning rate; its usual one if not given.
        base_lr: another name of `lr`.
        clip: longest gradient of a unit, in units of the unit's own length.
        eps: least length that a unit is taken to have.
    """

    def __init__(
        self,
        params: Any,
        momentum: Callable[..., nn.Module] | None = None,
        spectrum: Callable[..., nn.Module] | None = None,
        *,
        base: str = "adamw",
        lr: float | None = None,
        base_lr: float | None = None,
        clip: float = 0.01,
        eps: float = 1e-3,
    ):
        if clip <= 0 or eps <= 0:
            raise ValueError(f"clip={clip} and eps={eps} must be above 0")
        self.clip, self.eps = clip, eps
        super().__init__(params, momentum, spectrum, base=base, lr=base_lr if lr is None else lr)

    def before(self, params: list[Tensor]) -> None:
        self.gradients = [p.grad for p in params]
        for p in params:
            longest = _lengths(p).clamp_min(self.eps) * self.clip
            p.grad = (p.grad * (longest / _lengths(p.grad)).clamp_max(1.0)).to(p.dtype)

    def after(self, params: list[Tensor], moved: float | Tensor) -> None:
        for p, gradient in zip(params, self.gradients, strict=True):
            p.grad = gradient
        self.gradients = []


def _lengths(x: Tensor) -> Tensor:
    """Of each unit, broadcast against the tensor."""
    axes = tuple(range(1, x.ndim)) if x.ndim > 1 else None
    return torch.linalg.vector_norm(x, dim=axes, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
