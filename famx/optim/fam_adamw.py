"""AdamW with a momentum rule that chooses beta1 for each tensor (seed.md; arXiv:1711.05101)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from famx.kernels.tensor_table import supports
from famx.optim._kernels import average, contiguous, descend
from famx.optim._rules import Factory
from famx.optim.base import Group, GroupUpdate, Optimizer, Update
from famx.registry import register
from famx.validate import NON_NEGATIVE, check_number


@register
class FAMAdamW(Optimizer):
    """m <- a·m + (1-a)·g; v <- β₂·v + (1-β₂)·g²; θ <- θ - lr·(m̂/(√v̂ + eps) + weight_decay·θ).

    m̂ = m / (1 - product of all a of the tensor), v̂ = v / (1 - β₂ᵗ). The default rule is `fam` on
    the spectrum `temporal`; with a = betas[0] in all steps, this is AdamW.

    Args:
        params: parameters or groups; a group may have its own `kind`, `alpha` (base momentum) and
            `n_bands`.
        lr: learning rate.
        betas: base momentum of groups without `alpha`, and decay of the average of g², in [0, 1).
        eps: added to the square root.
        weight_decay: share of a parameter that is subtracted per step, times lr.
        n_bands: number of bands of the spectrum.
        maximize: whether to ascend along the gradient instead.
        rules: factories `momentum` and `spectrum`, see `Optimizer`.
    """

    default_rule: Mapping[str, Any] = {"name": "fam"}

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        n_bands: int = 8,
        maximize: bool = False,
        **rules: Factory | None,
    ):
        alpha, beta2 = betas
        check_number("eps", eps, NON_NEGATIVE)
        if not 0 <= beta2 < 1:
            raise ValueError(f"the second of betas={betas} is not in [0, 1)")
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "beta2": beta2,
            "eps": eps,
            "weight_decay": weight_decay,
            "n_bands": n_bands,
            "maximize": maximize,
        }
        super().__init__(params, defaults, **rules)

    def init(self, param: Tensor) -> dict[str, Tensor]:
        return {
            name: torch.zeros_like(param, memory_format=torch.contiguous_format)
            for name in ("exp_avg", "exp_avg_sq")
        }

    def update(self, group: Group, updates: Sequence[Update], found_inf: Tensor) -> None:
        step = self._fused_step if found_inf.device.type == "cpu" else self._per_tensor_step
        step(group, updates, found_inf)

    def update_group(self, group: Group, update: GroupUpdate, found_inf: Tensor) -> None:
        if not supports(update.params, update.gradients):
            super().update_group(group, update, found_inf)
            return
        from famx.kernels.adamw import adamw

        with contiguous(update.params) as params:
            adamw(
                params,
                update.gradients,
                averages=(update.state("exp_avg"), update.state("exp_avg_sq")),
                numbers=(update.momentum, update.momentum_product, update.step),
                lr=group["lr"],
                beta2=group["beta2"],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                found_inf=found_inf,
            )

    def _fused_step(self, group: Group, updates: Sequence[Update], found_inf: Tensor) -> None:
        """Launches one kernel for all tensors with equal coefficients, products and step counts."""
        # tensors by the numbers that the kernel takes
        batches: dict[Any, list[Update]] = {}
        for u in updates:
            # the kernel divides m by 1 - aᵗ, and `ratio` corrects that to 1 - product;
            # the product is still 1 if the first step was skipped
            ratio: Any = (1 - u.momentum**u.step) / (1 - u.momentum_product) if u.step else 1.0
            key = (u.momentum, round(ratio, 7), u.step, u.param.dtype)
            batches.setdefault(key, []).append(u)
        for (a, ratio, t, _), batch in batches.items():
            params, gradients, states, *_ = zip(*batch, strict=True)
            m = [state["exp_avg"] for state in states]
            v = [state["exp_avg_sq"] for state in states]
            with contiguous(params) as dense:
                torch._fused_adamw_(
                    dense,
                    gradients,
                    m,
                    v,
                    [],
                    [torch.tensor(t)] * len(batch),
                    lr=group["lr"] * ratio,
                    beta1=a,
                    beta2=group["beta2"],
                    weight_decay=group["weight_decay"] / ratio,
                    eps=group["eps"],
                    amsgrad=False,
                    maximize=False,
                    found_inf=found_inf,
                )

    def _per_tensor_step(self, group: Group, updates: Sequence[Update], found_inf: Tensor) -> None:
        """Computes the same with coefficients on the device; the kernel above takes only floats."""
        # both averages
        beta2 = group["beta2"]
        gradients = [u.gradient for u in updates]
        m = [u.state["exp_avg"] for u in updates]
        v = [u.state["exp_avg_sq"] for u in updates]
        average(m, gradients, [1 - u.momentum for u in updates], found_inf)
        average(v, torch._foreach_mul(gradients, gradients), [1 - beta2] * len(v), found_inf)
        # m̂ / (√v̂ + eps)
        debiased_v = [x / (1 - beta2**u.step) for x, u in zip(v, updates, strict=True)]
        roots = torch._foreach_sqrt(debiased_v)
        directions = [
            # a 0-d parameter of half precision would become fp32, the dtype of its numbers
            (x / (1 - u.momentum_product) / (root + group["eps"])).to(u.param.dtype)
            for x, root, u in zip(m, roots, updates, strict=True)
        ]
        params = [u.param for u in updates]
        descend(params, directions, group["lr"], group["weight_decay"], found_inf)
