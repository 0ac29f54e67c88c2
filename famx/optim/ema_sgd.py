"""Descent along an average of gradients, whose momentum a rule chooses tensor by tensor (seed.md: the step of FAM)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from famx.optim._kernels import EPS, PLAIN, average, contiguous, descend
from famx.optim.base import Optimizer, Update, at_least
from famx.registry import register


@register
class EmaSGD(Optimizer):
    """m <- a·m + (1 - a)·g; θ <- θ - lr·(m + weight_decay·θ), a per tensor from the momentum rule.

    Args:
        params: parameters or groups; a group may have `kind`, `alpha` and `n_bands` of its own.
        momentum: factory of the rule; `constant` if not given: a = alpha.
        spectrum: factory of what the rule measures with; the rule's usual one if not given.
        lr: learning rate; the default is for gradients bounded unit by unit (`trainer.clip`), raw ones want far less.
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
        lr: float = 20.0,
        alpha: float = 0.9,
        weight_decay: float = 0.0,
        n_bands: int = 8,
        decoupled: bool = True,
        debias: bool = False,
    ):
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "weight_decay": weight_decay,
            "n_bands": n_bands,
            "decoupled": decoupled,
        }
        self.debias = debias
        super().__init__(params, momentum, spectrum, usual=self.usual, **defaults)

    def init(self, param: Tensor) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(param, memory_format=torch.contiguous_format)}

    def update(self, group: dict[str, Any], rows: Sequence[Update], cancel: Tensor) -> None:
        averages = [row.state["exp_avg"] for row in rows]
        # m / (1 - product) itself is the average m <- m + w·(g - m); a cancelled first step has no product yet
        weights = [
            (1 - row.a) / at_least(1 - row.product, EPS) if self.debias else 1 - row.a
            for row in rows
        ]
        weight_decay = group["weight_decay"] * group["decoupled"]
        step = self.at_once if cancel.device.type == "cpu" else self.in_turn
        step(rows, averages, weights, group["lr"], weight_decay, cancel)

    def at_once(
        self,
        rows: Sequence[Update],
        averages: Sequence[Tensor],
        weights: Sequence[float],
        lr: float | Tensor,
        weight_decay: float,
        cancel: Tensor,
    ) -> None:
        """m <- m + w·(g - m); θ <- θ - lr·(m + weight_decay·θ), in place, in one kernel for all of one w."""
        alike: dict[Any, list[tuple[Tensor, Tensor, Tensor]]] = {}
        for row, m, w in zip(rows, averages, weights, strict=True):
            alike.setdefault((w, m.dtype), []).append((row.param, row.gradient, m))
        for (w, _), tensors in alike.items():
            params, gradients, ms = zip(*tensors, strict=True)
            if w == 1.0:  # without momentum the kernel takes no averages
                average(ms, gradients, [w] * len(ms), cancel)
                descend(params, ms, lr, weight_decay, cancel)
                continue
            with contiguous(params) as dense:
                if weight_decay:
                    # the kernel's own decay would go into m
                    torch._foreach_mul_(dense, 1 - lr * weight_decay * (1 - cancel))
                options = PLAIN | {"momentum": 1 - w, "dampening": 1 - w}
                torch._fused_sgd_(
                    dense,
                    gradients,
                    ms,
                    lr=lr,
                    weight_decay=0.0,
                    maximize=False,
                    found_inf=cancel,
                    **options,
                )

    def in_turn(
        self,
        rows: Sequence[Update],
        averages: Sequence[Tensor],
        weights: Sequence[float | Tensor],
        lr: float | Tensor,
        weight_decay: float,
        cancel: Tensor,
    ) -> None:
        """The same where coefficients are on the device: the kernel of both takes but numbers."""
        average(averages, [row.gradient for row in rows], weights, cancel)
        descend([row.param for row in rows], averages, lr, weight_decay, cancel)
