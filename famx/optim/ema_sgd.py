"""SGD along averaged gradients, with a momentum rule for each tensor: FAM's step (seed.md)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from famx.kernels.tensor_table import supports
from famx.optim._kernels import EPS, average, clamp_min, contiguous, descend
from famx.optim._rules import Factory
from famx.optim.base import Group, GroupUpdate, Optimizer, Update
from famx.registry import register


@register
class EmaSGD(Optimizer):
    """m <- a·m + (1 - a)·g; θ <- θ - lr·(m + weight_decay·θ), a per tensor from the momentum rule.

    The default rule is `constant`: a = alpha.

    Args:
        params: parameters or groups; a group may have its own `kind`, `alpha` and `n_bands`.
        lr: learning rate; famx's trainer, which clips gradients by unit, has a default of 20.
        alpha: base momentum, in [0, 1).
        weight_decay: share of a parameter that is subtracted per step, times lr.
        n_bands: number of bands of the spectrum, if the rule measures one.
        decoupled: False adds weight_decay·θ to the gradient instead, before it is measured and
            averaged.
        debias: whether to divide m by 1 - (product of all a), the sum of its weights.
        maximize: whether to ascend along the gradient instead.
        rules: factories `momentum` and `spectrum`, see `Optimizer`.
    """

    default_rule: Mapping[str, Any] = {"name": "constant"}
    trainer_defaults: Mapping[str, Any] = {"lr": 20.0}

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float = 1e-3,
        alpha: float = 0.9,
        weight_decay: float = 0.0,
        n_bands: int = 8,
        decoupled: bool = True,
        debias: bool = False,
        maximize: bool = False,
        **rules: Factory | None,
    ):
        self.debias = debias
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "weight_decay": weight_decay,
            "n_bands": n_bands,
            "decoupled": decoupled,
            "maximize": maximize,
        }
        super().__init__(params, defaults, **rules)

    def init(self, param: Tensor) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(param, memory_format=torch.contiguous_format)}

    def update(self, group: Group, updates: Sequence[Update], found_inf: Tensor) -> None:
        if self.debias:
            # the debiased m / (1 - product) is itself an average m <- m + w·(g - m);
            # the product is still 1 if the first step was skipped
            weights = [(1 - u.momentum) / clamp_min(1 - u.momentum_product, EPS) for u in updates]
        else:
            weights = [1 - u.momentum for u in updates]
        weight_decay = group["weight_decay"] * group["decoupled"]
        step = self._fused_step if found_inf.device.type == "cpu" else self._per_tensor_step
        step(updates, weights, group["lr"], weight_decay, found_inf)

    def update_group(self, group: Group, update: GroupUpdate, found_inf: Tensor) -> None:
        if not supports(update.params, update.gradients):
            super().update_group(group, update, found_inf)
            return
        from famx.kernels.multi_tensor import average_and_descend

        with contiguous(update.params) as params:
            average_and_descend(
                params,
                update.gradients,
                averages=update.state("exp_avg"),
                numbers=(update.momentum, update.momentum_product),
                lr=group["lr"],
                weight_decay=group["weight_decay"] * group["decoupled"],
                found_inf=found_inf,
                debias=self.debias,
            )

    def _fused_step(
        self,
        updates: Sequence[Update],
        weights: Sequence[float | Tensor],
        lr: float | Tensor,
        weight_decay: float,
        found_inf: Tensor,
    ) -> None:
        """m <- m + w·(g - m); θ <- θ - lr·(m + weight_decay·θ), one kernel for each w."""
        # one launch per momentum and dtype, since the kernel takes one momentum for all tensors
        batches: dict[Any, tuple[list[Tensor], list[Tensor], list[Tensor]]] = {}
        for u, w in zip(updates, weights, strict=True):
            m = u.state["exp_avg"]
            params, gradients, averages = batches.setdefault((w, m.dtype), ([], [], []))
            params.append(u.param)
            gradients.append(u.gradient)
            averages.append(m)
        for (w, _), (params, gradients, averages) in batches.items():
            if w == 1.0:  # without momentum the kernel ignores the averages
                average(averages, gradients, [w] * len(averages), found_inf)
                descend(params, averages, lr, weight_decay, found_inf)
                continue
            with contiguous(params) as dense:
                if weight_decay:
                    # decoupled, since the kernel would add the decay to m
                    torch._foreach_mul_(dense, 1 - lr * weight_decay * (1 - found_inf))
                torch._fused_sgd_(
                    dense,
                    gradients,
                    averages,
                    lr=lr,
                    weight_decay=0.0,
                    momentum=1 - w,
                    dampening=1 - w,
                    nesterov=False,
                    maximize=False,
                    is_first_step=False,
                    found_inf=found_inf,
                )

    def _per_tensor_step(
        self,
        updates: Sequence[Update],
        weights: Sequence[float | Tensor],
        lr: float | Tensor,
        weight_decay: float,
        found_inf: Tensor,
    ) -> None:
        """Computes the same with weights on the device; the fused kernel takes only floats."""
        averages = [u.state["exp_avg"] for u in updates]
        average(averages, [u.gradient for u in updates], weights, found_inf)
        descend([u.param for u in updates], averages, lr, weight_decay, found_inf)
