"""SGD with momentum, of torch (Sutskever et al. 2013)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from famx.optim._rules import Factory
from famx.optim._state import Group
from famx.optim._torch import TorchOptimizer
from famx.registry import register


@register
class SGD(TorchOptimizer, torch.optim.SGD):
    """g' = g + weight_decay·θ; m <- alpha·m + g'; θ <- θ - lr·m, Nesterov: θ - lr·(g' + alpha·m).

    Args:
        params: parameters or groups.
        lr: learning rate; famx's trainer, which clips gradients by unit, has a default of 2.
        alpha: momentum, in [0, 1).
        nesterov: whether to use Nesterov momentum.
        weight_decay: share of a parameter that is added to its gradient.
        maximize: whether to ascend along the gradient instead.
        rules: must be None, see `TorchOptimizer`.
    """

    trainer_defaults: Mapping[str, Any] = {"lr": 2.0}

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float = 1e-3,
        alpha: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        maximize: bool = False,
        **rules: Factory | None,
    ):
        if not 0 <= alpha < 1:
            raise ValueError(f"alpha={alpha} is not in [0, 1)")
        options = {
            "lr": lr,
            "momentum": alpha,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "maximize": maximize,
            # torch's fused kernel fails where a parameter gets its first gradient later than others
            "foreach": True,
        }
        super().__init__(params, options, **rules)

    def init(self, param: Tensor, group: Group) -> dict[str, Tensor]:
        # without momentum torch stores no average
        return {"momentum_buffer": torch.zeros_like(param)} if group["momentum"] else {}
