"""NAdamW of torch: AdamW with Nesterov momentum (Dozat 2016; arXiv:1711.05101)."""

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from famx.optim._rules import Factory
from famx.optim._state import Group
from famx.optim._torch import TorchOptimizer
from famx.registry import register


@register
class NAdamW(TorchOptimizer, torch.optim.NAdam):
    """AdamW with m̂ = μ'·m / (1 - product of all μ and μ') + (1 - μ)·g / (1 - product of all μ).

    μ grows from β₁ / 2 to β₁: at step t it is β₁·(1 - .96^(t·momentum_decay) / 2), and μ' is the μ
    of step t + 1.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: decay of the averages of g and g², in [0, 1).
        eps: added to the square root.
        weight_decay: share of a parameter that is subtracted per step, times lr.
        momentum_decay: speed at which μ grows.
        maximize: whether to ascend along the gradient instead.
        rules: must be None, see `TorchOptimizer`.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        momentum_decay: float = 4e-3,
        maximize: bool = False,
        **rules: Factory | None,
    ):
        options = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum_decay": momentum_decay,
            "decoupled_weight_decay": True,
            "maximize": maximize,
        }
        super().__init__(params, options, **rules)

    def init(self, param: Tensor, group: Group) -> dict[str, Tensor]:
        return {
            "step": torch.zeros((), device=param.device),
            "mu_product": torch.ones((), device=param.device),
            "exp_avg": torch.zeros_like(param),
            "exp_avg_sq": torch.zeros_like(param),
        }

    def _choose_kernel(self, params: list[Tensor], gradients: list[Tensor]) -> bool:
        # on a device, torch counts the steps there, so that a skipped one can be restored
        for group in self.param_groups:
            group["capturable"] = params[0].device.type == "cuda"
        return super()._choose_kernel(params, gradients)
