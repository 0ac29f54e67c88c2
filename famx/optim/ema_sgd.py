"""Descent along an average of gradients, whose momentum a rule chooses tensor by tensor (seed.md: the step of FAM)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from famx.optim.base import Optimizer
from famx.registry import register


@register
class EmaSGD(Optimizer):
    """m <- a·m + (1 - a)·g; θ <- θ - lr·(m + weight_decay·θ), a per tensor from the momentum rule.

    Args:
        params: parameters or groups; a group may have `kind`, `alpha` and `n_bands` of its own.
        momentum: factory of the rule; `constant` if not given: a = alpha.
        spectrum: factory of what the rule measures with; the rule's usual one if not given.
        lr: learning rate; the step is as long as the averaged gradient, SGD's would be 1 / (1 - a) times that.
        alpha: base momentum, in [0, 1).
        weight_decay: share of a parameter taken away per step, times lr.
        n_bands: bands its spectrum is measured in, if the rule measures one.
        decoupled: False adds weight_decay·θ to the gradient instead, before it is measured and averaged.
        debias: whether m is divided by 1 - product of all a, the sum of its weights.
    """

    usual: ClassVar[Mapping[str, Any]] = {"name": "constant"}

    def __init__(
        self,
        params: Any,
        momentum: Callable[..., nn.Module] | None = None,
        spectrum: Callable[..., nn.Module] | None = None,
        *,
        lr: float = 1e-3,
        alpha: float = 0.9,
        weight_decay: float = 0.0,
        n_bands: int = 8,
        decoupled: bool = True,
        debias: bool = False,
    ):
        defaults = {"lr": lr, "alpha": alpha, "weight_decay": weight_decay, "n_bands": n_bands, "decoupled": decoupled}
        super().__init__(params, momentum, spectrum, usual=self.usual, debias=debias, **defaults)

    def init(self, param: Tensor) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(param)}

    def update(
        self,
        group: dict[str, Any],
        params: Sequence[Tensor],
        gradients: Sequence[Tensor],
        weights: Sequence[Tensor],
        cancel: Tensor,
    ) -> None:
        averages = [self.state[p]["exp_avg"] for p in params]
        for average, gradient, weight in zip(averages, gradients, weights, strict=True):
            # m - w·(m - g): the fused kernel reads w and the flag on the device, which lerp cannot
            descend([average], [gradient], weight, 1.0, cancel, maximize=True)
        descend(params, averages, group["lr"], group["weight_decay"] * group["decoupled"], cancel)


def descend(
    targets: Sequence[Tensor],
    directions: Sequence[Tensor],
    lr: float | Tensor,
    weight_decay: float,
    cancel: Tensor,
    maximize: bool = False,
) -> None:
    """target <- target - lr·(± direction + weight_decay·target), in one pass over memory; nothing where cancel is 1."""
    if cancel.is_meta:  # torch's fused kernel has no meta form, and there is nothing to compute
        return
    if isinstance(lr, Tensor):
        lr = lr.to(cancel.device, torch.float32, non_blocking=True)
    for dtype in {target.dtype for target in targets}:
        alike = [(t, d) for t, d in zip(targets, directions, strict=True) if t.dtype == dtype]
        # the kernel walks through memory: both must be dense and in one order
        dense = [t if t.is_contiguous() else t.contiguous() for t, _ in alike]
        torch._fused_sgd_(
            dense,
            [d.to(dtype).contiguous() for _, d in alike],
            [],
            weight_decay=weight_decay,
            momentum=0.0,
            lr=lr,
            dampening=0.0,
            nesterov=False,
            maximize=maximize,
            is_first_step=False,
            found_inf=cancel,
        )
        for (target, _), done in zip(alike, dense, strict=True):
            if done is not target:
                target.copy_(done)
