"""Descent along an average of gradients, whose momentum a rule chooses tensor by tensor (seed.md: the step of FAM)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from famx.optim.base import Optimizer
from famx.registry import register

PLAIN = {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "is_first_step": False}


@register
class EmaSGD(Optimizer):
    """m <- a·m + (1 - a)·g; θ <- θ - lr·(m + weight_decay·θ), a per tensor from the momentum rule.

    Args:
        params: parameters or groups; a group may have `kind`, `alpha` and `n_bands` of its own.
        momentum: factory of the rule; `constant` if not given: a = alpha.
        spectrum: factory of what the rule measures with; the rule's usual one if not given.
        lr: learning rate; the default is for gradients bounded unit by unit (`trainer.clip`), raw ones want a tenth.
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
        lr: float = 5.0,
        alpha: float = 0.9,
        weight_decay: float = 0.0,
        n_bands: int = 8,
        decoupled: bool = True,
        debias: bool = False,
    ):
        defaults = {"lr": lr, "alpha": alpha, "weight_decay": weight_decay, "n_bands": n_bands, "decoupled": decoupled}
        super().__init__(params, momentum, spectrum, usual=self.usual, debias=debias, **defaults)

    def init(self, param: Tensor) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(param, memory_format=torch.contiguous_format)}

    def update(
        self,
        group: dict[str, Any],
        params: Sequence[Tensor],
        gradients: Sequence[Tensor],
        weights: Sequence[Tensor],
        cancel: Tensor,
    ) -> None:
        averages = [self.state[p]["exp_avg"] for p in params]
        average(averages, gradients, weights, cancel)
        descend(params, averages, group["lr"], group["weight_decay"] * group["decoupled"], cancel)


def average(averages: Sequence[Tensor], gradients: Sequence[Tensor], weights: Sequence[Tensor], cancel: Tensor) -> None:
    """m <- m + w·(g - m), in place; nothing where cancel is 1. All contiguous, for the kernel does not see strides."""
    if cancel.is_meta:  # torch's fused kernels have no meta form, and there is nothing to compute
        return
    # a descent from m against -g + 1·m: only the fused kernel reads w and cancel where they are, on the device
    for m, g, w in zip(averages, gradients, weights, strict=True):
        torch._fused_sgd_([m], [g], [], lr=w, weight_decay=1.0, maximize=True, found_inf=cancel, **PLAIN)


def descend(
    params: Sequence[Tensor], directions: Sequence[Tensor], lr: float | Tensor, weight_decay: float, cancel: Tensor
) -> None:
    """θ <- θ - lr·(direction + weight_decay·θ), in place; nothing where cancel is 1."""
    if cancel.is_meta:
        return
    if isinstance(lr, Tensor):
        lr = lr.to(cancel.device, torch.float32, non_blocking=True)
    alike: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
    for p, direction in zip(params, directions, strict=True):
        alike.setdefault(p.dtype, []).append((p, direction))
    for pairs in alike.values():
        dense = [p.contiguous() for p, _ in pairs]
        options = {"lr": lr, "weight_decay": weight_decay, "maximize": False, "found_inf": cancel}
        torch._fused_sgd_(dense, [direction for _, direction in pairs], [], **options, **PLAIN)
        for (p, _), done in zip(pairs, dense, strict=True):
            if not p.is_contiguous():
                p.copy_(done)
