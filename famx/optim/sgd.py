"""SGD with momentum, torch's own (Sutskever et al. 2013)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from famx.optim._torch import TorchOptimizer
from famx.registry import register


@register
class SGD(TorchOptimizer, torch.optim.SGD):
    """g' = g + weight_decay·θ; m <- alpha·m + g'; θ <- θ - lr·m, or with Nesterov's look ahead θ - lr·(g' + alpha·m).

    Args:
        params: parameters or groups.
        lr: learning rate; the default is for gradients bounded unit by unit (`trainer.clip`), raw ones want far less.
        alpha: momentum, in [0, 1).
        nesterov: whether to look ahead.
        weight_decay: of the coupled decay.
    """

    def __init__(
        self,
        params: Any,
        momentum: Callable[..., nn.Module] | None = None,
        spectrum: Callable[..., nn.Module] | None = None,
        *,
        lr: float = 2.0,
        alpha: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ):
        if not 0 <= alpha < 1:
            raise ValueError(f"alpha={alpha} is not in [0, 1)")
        # torch's fused kernel fails where one parameter gets its first gradient after another
        options = {
            "lr": lr,
            "momentum": alpha,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "foreach": True,
        }
        super().__init__(params, momentum, spectrum, **options)
