"""Research: one momentum per band of a gradient's spectrum, larger for high bands (seed.md)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from famx.optim._kernels import descend
from famx.optim._rules import Factory
from famx.optim.base import Group, Optimizer, Update
from famx.registry import register
from famx.validate import check_number


@register
class FAMBandwise(Optimizer):
    """M(f) <- a(f)·M(f) + (1 - a(f))·G(f); θ <- θ - lr·(m + weight_decay·θ), m = irfft(M).

    G is the rfft over all elements of g, divided into n bands of equal width. In band b,
    a(f) = a + spread·(2b/(n - 1) - 1), clamped to [0, .999], with the tensor's a from the momentum
    rule (default: `constant`, a = alpha). Tensors with fewer bins than bands have a(f) = a.

    Args:
        params: parameters or groups; a group may have its own `kind`, `alpha` and `n_bands`.
        lr: learning rate; famx's trainer, which clips gradients by unit, has a default of 20.
        alpha: momentum of the middle band, in [0, 1).
        spread: added to alpha in the highest band, subtracted in the lowest.
        weight_decay: share of a parameter that is subtracted per step, times lr.
        n_bands: number of bands, of G and of the spectrum that the rule measures.
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
        spread: float = 0.05,
        weight_decay: float = 0.0,
        n_bands: int = 8,
        maximize: bool = False,
        **rules: Factory | None,
    ):
        check_number("spread", spread)
        self.spread = spread
        defaults = {"lr": lr, "alpha": alpha, "weight_decay": weight_decay, "n_bands": n_bands}
        defaults["maximize"] = maximize
        super().__init__(params, defaults, **rules)

    def init(self, param: Tensor) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(param, memory_format=torch.contiguous_format)}

    def update(self, group: Group, updates: Sequence[Update], found_inf: Tensor) -> None:
        averages = [u.state["exp_avg"] for u in updates]
        for u, m in zip(updates, averages, strict=True):
            # the transform is linear, so m itself can be stored: m + irfft((1 - a)·rfft(g - m))
            change = (u.gradient - m).flatten().to(torch.promote_types(m.dtype, torch.float32))
            bins = torch.fft.rfft(change)
            weights = 1 - self.coefficients(u.momentum, len(bins), group["n_bands"], change)
            new = m + torch.fft.irfft(weights * bins, n=len(change)).view(m.shape).to(m.dtype)
            m.copy_(torch.where(found_inf > 0, m, new))
        descend([u.param for u in updates], averages, group["lr"], group["weight_decay"], found_inf)

    def coefficients(self, a: float | Tensor, n_bins: int, n_bands: int, like: Tensor) -> Tensor:
        """Returns a(f) for each bin (n_bins,), on the device and in the dtype of `like`."""
        if n_bins < n_bands or n_bands == 1:
            return like.new_ones(n_bins) * a
        # the last band has the bins that remain
        bins = torch.arange(n_bins, device=like.device)
        band = (bins // (n_bins // n_bands)).clamp_max(n_bands - 1)
        return (a + self.spread * (2 * band / (n_bands - 1) - 1)).clamp(0.0, 0.999).to(like.dtype)
