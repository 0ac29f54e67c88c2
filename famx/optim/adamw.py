"""AdamW, torch's own, in one kernel where the device has it; under a momentum rule, FAM-AdamW (arXiv:1711.05101)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from famx.optim._torch import TorchOptimizer
from famx.optim.fam_adamw import FAMAdamW
from famx.registry import register


@register
class AdamW(TorchOptimizer, torch.optim.AdamW):
    """m, v <- averages of g and g²; θ <- θ - lr·(m̂ / (sqrt(v̂) + eps) + weight_decay·θ).

    With `momentum` it is a `FAMAdamW` that wears that rule.

    Args:
        params: parameters or groups.
        momentum: factory of a rule that chooses the decay of the average of g, tensor by tensor.
        spectrum: factory of what that rule measures with.
        lr: learning rate.
        betas: decay of the averages of g and g², in [0, 1); short runs learn faster with a second one of .98.
        eps: added to the root.
        weight_decay: share of a parameter taken away per step, times lr.
    """

    fuses = True

    def __new__(
        cls,
        params: Any = None,
        momentum: Callable[..., nn.Module] | None = None,
        spectrum: Callable[..., nn.Module] | None = None,
        **options: Any,
    ):
        return (
            super().__new__(cls)
            if momentum is None
            else FAMAdamW(params, momentum, spectrum, **options)
        )

    def __init__(
        self,
        params: Any,
        momentum: Callable[..., nn.Module] | None = None,
        spectrum: Callable[..., nn.Module] | None = None,
        *,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        super().__init__(
            params, momentum, spectrum, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay
        )
