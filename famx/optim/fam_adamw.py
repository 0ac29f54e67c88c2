"""AdamW whose beta1 a momentum rule chooses tensor by tensor, by the spectrum of its gradient (seed.md; 1711.05101)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from famx.optim._kernels import average, contiguous, descend
from famx.optim.base import Optimizer, Update
from famx.registry import register
from famx.validate import NON_NEGATIVE, check_number


@register
class FAMAdamW(Optimizer):
    """m <- a·m + (1-a)·g; v <- β₂·v + (1-β₂)·g²; θ <- θ - lr·(m̂/(sqrt(v̂) + eps) + weight_decay·θ).

    m̂ = m / (1 - product of all a of the tensor), v̂ = v / (1 - β₂ᵗ). Wears momentum `fam` on spectrum `temporal`;
    with a = betas[0] always, it is AdamW.

    Args:
        params: parameters or groups; a group may have `kind`, `alpha` (its base momentum) and `n_bands` of its own.
        momentum: factory of another rule.
        spectrum: factory of another measure.
        lr: learning rate.
        betas: base momentum of groups without `alpha`, and decay of the average of g², in [0, 1).
        eps: added to the root.
        weight_decay: share of a parameter taken away per step, times lr.
        n_bands: bands of the spectrum.
    """

    usual: ClassVar[Mapping[str, Any]] = {"name": "fam"}

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
        n_bands: int = 8,
    ):
        alpha, beta2 = betas
        check_number("eps", eps, NON_NEGATIVE)
        if not 0 <= beta2 < 1:
            raise ValueError(f"the second of betas={betas} is not in [0, 1)")
        defaults = {"lr": lr, "alpha": alpha, "beta2": beta2, "eps": eps}
        super().__init__(
            params,
            momentum,
            spectrum,
            usual=self.usual,
            **defaults,
            weight_decay=weight_decay,
            n_bands=n_bands,
        )

    def init(self, param: Tensor) -> dict[str, Tensor]:
        return {
            name: torch.zeros_like(param, memory_format=torch.contiguous_format)
            for name in ("exp_avg", "exp_avg_sq")
        }

    def update(self, group: dict[str, Any], rows: Sequence[Update], cancel: Tensor) -> None:
        (self.in_one_kernel if cancel.device.type == "cpu" else self.in_turn)(group, rows, cancel)

    def in_one_kernel(self, group: dict[str, Any], rows: Sequence[Update], cancel: Tensor) -> None:
        """By torch's fused kernel, a call for all tensors whose coefficients and products agree."""
        alike: dict[Any, list[Update]] = {}
        for row in rows:
            # the kernel divides by 1 - aᵗ; a cancelled first step has no product yet
            longer = (1 - row.a**row.steps) / (1 - row.product) if row.steps else 1.0
            alike.setdefault((row.a, round(longer, 7), row.steps, row.param.dtype), []).append(row)
        for (a, longer, steps, _), own in alike.items():
            params, gradients, states, *_ = zip(*own, strict=True)
            with contiguous(params) as dense:
                torch._fused_adamw_(
                    dense,
                    gradients,
                    [state["exp_avg"] for state in states],
                    [state["exp_avg_sq"] for state in states],
                    [],
                    [torch.tensor(steps)] * len(own),
                    lr=group["lr"] * longer,
                    beta1=a,
                    beta2=group["beta2"],
                    weight_decay=group["weight_decay"] / longer,
                    eps=group["eps"],
                    amsgrad=False,
                    maximize=False,
                    found_inf=cancel,
                )

    def in_turn(self, group: dict[str, Any], rows: Sequence[Update], cancel: Tensor) -> None:
        """Average by average, where coefficients are on the device: the fused kernel takes but numbers."""
        beta2, params = group["beta2"], [row.param for row in rows]
        gradients = [row.gradient for row in rows]
        m = [row.state["exp_avg"] for row in rows]
        v = [row.state["exp_avg_sq"] for row in rows]
        average(m, gradients, [1 - row.a for row in rows], cancel)
        average(v, torch._foreach_mul(gradients, gradients), [1 - beta2] * len(v), cancel)
        debiased = [x / (1 - beta2**row.steps) for x, row in zip(v, rows, strict=True)]
        directions = [
            x / (1 - row.product) / (root + group["eps"])
            for x, root, row in zip(m, torch._foreach_sqrt(debiased), rows, strict=True)
        ]
        descend(params, directions, group["lr"], group["weight_decay"], cancel)
