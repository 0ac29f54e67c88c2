"""NAdamW, torch's own: AdamW with Nesterov's look ahead (Dozat 2016; decoupled decay of arXiv:1711.05101)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from famx.optim._torch import TorchOptimizer
from famx.registry import register


@register
class NAdamW(TorchOptimizer, torch.optim.NAdam):
    """As AdamW, but the step is along μ'·m / (1 - product of μ and μ') + (1 - μ)·g / (1 - product of μ).

    μ grows from β₁ / 2 to β₁: at step t it is β₁·(1 - .96^(t·momentum_decay) / 2).

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: decay of the averages of g and g², in [0, 1).
        eps: added to the root.
        weight_decay: share of a parameter taken away per step, times lr.
        momentum_decay: how fast μ grows.
    """

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
        momentum_decay: float = 4e-3,
    ):
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(
            params,
            momentum,
            spectrum,
            **options,
            momentum_decay=momentum_decay,
            decoupled_weight_decay=True,
        )
