"""Adafactor of torch: second moments of matrices as rows times columns (arXiv:1804.04235)."""

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from famx.optim._rules import Factory
from famx.optim._state import Group
from famx.optim._torch import TorchOptimizer
from famx.registry import register


@register
class Adafactor(TorchOptimizer, torch.optim.Adafactor):
    """θ <- θ - max(eps₂, RMS θ)·min(lr, 1/sqrt t)·U / max(1, RMS(U)/d).

    U = g / sqrt(V), V = R·C / mean(R), with R and C averages of the row and column sums of g².

    Args:
        params: parameters or groups.
        lr: largest change of a parameter per step, in units of its own RMS.
        beta2_decay: exponent of t in the weight of the new squares, below 0.
        eps: lower bounds of the square root of V (None: eps of the dtype) and of RMS θ.
        d: RMS(U) above which U is scaled down.
        weight_decay: share of a parameter that is subtracted per step, times lr.
        maximize: whether to ascend along the gradient instead.
        rules: must be None, see `TorchOptimizer`.
    """

    reads_host = True

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        **rules: Factory | None,
    ):
        options = {"lr": lr, "beta2_decay": beta2_decay, "eps": eps, "d": d}
        options |= {"weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, options, **rules)

    def init(self, param: Tensor, group: Group) -> dict[str, Tensor]:
        # torch counts steps on the host
        state = {"step": torch.zeros(())}
        if param.ndim < 2:
            return state | {"variance": torch.zeros_like(param)}
        return state | {
            "row_var": param.new_zeros((*param.shape[:-1], 1)),
            "col_var": param.new_zeros((*param.shape[:-2], 1, param.shape[-1])),
        }
