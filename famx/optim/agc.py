"""Adaptive gradient clipping around another optimizer, unit by unit (arXiv:2102.06171)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from famx.nn.clip import clip_by_unit_norm
from famx.optim._wrapper import Wrapper
from famx.registry import register
from famx.validate import POSITIVE, check_number


@register
class AGC(Wrapper):
    """The base sees g_i·min(1, clip·max(‖θ_i‖, eps·√n_i) / ‖g_i‖), i the rows of matrices and the output channels of
    convolutions, of n_i entries; a vector is one unit.

    Args:
        params: an optimizer, or parameters or groups over which the base is built.
        momentum: factory of the rule that the base wears.
        spectrum: factory of what that rule measures with.
        base: name of the optimizer.
        lr: its learning rate; its usual one if not given.
        base_lr: another name of `lr`.
        clip: longest gradient of a unit, in units of the unit's own length.
        eps: what each weight counts as at the least.
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
        check_number("clip", clip, POSITIVE)
        check_number("eps", eps, POSITIVE)
        self.clip, self.eps = clip, eps
        super().__init__(params, momentum, spectrum, base=base, lr=base_lr if lr is None else lr)

    def before(self, params: list[Tensor]) -> None:
        self.gradients = [p.grad for p in params]
        for p in params:
            p.grad = p.grad.clone()
        clip_by_unit_norm(params, self.clip, self.eps)

    def after(self, params: list[Tensor], moved: float | Tensor) -> None:
        for p, gradient in zip(params, self.gradients, strict=True):
            p.grad = gradient
        self.gradients = []
