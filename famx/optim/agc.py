"""Adaptive gradient clipping around another optimizer, unit by unit (arXiv:2102.06171)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from famx.nn.clip import clip_by_unit_norm
from famx.optim._wrapper import Wrapper
from famx.registry import register
from famx.validate import POSITIVE, check_number


@register
class AGC(Wrapper):
    """The base gets g_i·min(1, clip·max(‖θ_i‖, eps·√n_i) / ‖g_i‖) instead of g_i.

    The units i, with n_i elements, are the rows of matrices and the output channels of
    convolutions; a vector is one unit.

    Args:
        params: an optimizer, or parameters or groups to build the base for.
        clip: largest norm of a unit's gradient, relative to the norm of its weights; in famx's
            trainer, which clips at .005 first, the default is 1e-3.
        eps: lower bound of the RMS of a unit's weights, since biases start at zero.
        options: `base`, `lr`, `momentum` and `spectrum` of `Wrapper`.
    """

    # dev losses of short runs on speech (two seeds; adamw: 1.400, 1.337): clip 1e-4 1.402, 1.340;
    # 5e-4 1.403, 1.339; 1e-3 1.404, 1.341; 2e-3 1.403, 1.339
    trainer_defaults: Mapping[str, Any] = {"clip": 1e-3}

    def __init__(
        self,
        params: ParamsT | torch.optim.Optimizer,
        *,
        clip: float = 0.01,
        eps: float = 1e-3,
        **options: Any,
    ):
        check_number("clip", clip, POSITIVE)
        check_number("eps", eps, POSITIVE)
        self.clip = clip
        self.eps = eps
        self.full_gradients: list[Tensor] = []
        super().__init__(params, **options)

    def before(self, params: list[Tensor]) -> None:
        # copies are clipped, since the gradients belong to the caller
        self.full_gradients = [p.grad for p in params if p.grad is not None]
        copies = [torch.empty_like(gradient) for gradient in self.full_gradients]
        if copies:
            torch._foreach_copy_(copies, self.full_gradients)
        for p, gradient in zip(params, copies, strict=True):
            p.grad = gradient
        clip_by_unit_norm(params, self.clip, self.eps)

    def after(self, params: list[Tensor], stepped: float | Tensor) -> None:
        # restores the gradients of the caller
        for p, gradient in zip(params, self.full_gradients, strict=True):
            p.grad = gradient
        self.full_gradients = []
