"""AdamW of torch, with its fused kernel if the device has one (arXiv:1711.05101)."""

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from famx.optim._rules import Factory
from famx.optim._state import Group
from famx.optim._torch import TorchOptimizer
from famx.registry import register


@register
class AdamW(TorchOptimizer, torch.optim.AdamW):
    """m, v <- averages of g and g²; θ <- θ - lr·(m̂ / (sqrt(v̂) + eps) + weight_decay·θ).

    `fam_adamw` is the same step with a momentum rule.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: decay of the averages of g and g², in [0, 1); with .98, short runs learn faster than
            with the .999 of the paper.
        eps: added to the square root.
        weight_decay: share of a parameter that is subtracted per step, times lr.
        maximize: whether to ascend along the gradient instead.
        rules: must be None, see `TorchOptimizer`.
    """

    has_fused_kernel = True

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        maximize: bool = False,
        **rules: Factory | None,
    ):
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**options, "maximize": maximize}, **rules)

    def init(self, param: Tensor, group: Group) -> dict[str, Tensor]:
        return {
            "step": torch.zeros((), device=param.device),
            "exp_avg": torch.zeros_like(param),
            "exp_avg_sq": torch.zeros_like(param),
        }
