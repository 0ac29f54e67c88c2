"""Research: momentum per band of a gradient's own spectrum, more for the fine than for the coarse (seed.md)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from famx.optim._kernels import descend
from famx.optim.base import Optimizer, Update
from famx.registry import register
from famx.validate import check_number


@register
class FAMBandwise(Optimizer):
    """M(f) <- a(f)·M(f) + (1 - a(f))·G(f); θ <- θ - lr·(m + weight_decay·θ), m = irfft(M), G = rfft(all entries of g).

    Of n bands b of f, equally wide: a(f) = a + spread·(2b/(n - 1) - 1), within [0, .999], a of the tensor from the
    momentum rule. Tensors with fewer bins than bands have a for all f.

    Args:
        params: parameters or groups; a group may have `kind`, `alpha` and `n_bands` of its own.
        momentum: factory of the rule; `constant` if not given: a = alpha.
        spectrum: factory of what the rule measures with.
        lr: learning rate.
        alpha: momentum of the middle band, in [0, 1).
        spread: what the highest band has more, and the lowest less.
        weight_decay: share of a parameter taken away per step, times lr.
        n_bands: bands of the entries' spectrum, and of the rule's.
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
        spread: float = 0.05,
        weight_decay: float = 0.0,
        n_bands: int = 8,
    ):
        check_number("spread", spread)
        self.spread = spread
        options = {"lr": lr, "alpha": alpha, "weight_decay": weight_decay, "n_bands": n_bands}
        super().__init__(params, momentum, spectrum, usual=self.usual, **options)

    def init(self, param: Tensor) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(param, memory_format=torch.contiguous_format)}

    def update(self, group: dict[str, Any], rows: Sequence[Update], cancel: Tensor) -> None:
        averages = [row.state["exp_avg"] for row in rows]
        for row, m in zip(rows, averages, strict=True):
            # the transform is linear, so that m itself can be kept: m + irfft((1 - a)·rfft(g - m))
            change = (row.gradient - m).flatten().to(torch.promote_types(m.dtype, torch.float32))
            bins = torch.fft.rfft(change)
            weights = 1 - self.coefficients(row.a, len(bins), group["n_bands"], change)
            new = m + torch.fft.irfft(weights * bins, n=len(change)).view(m.shape).to(m.dtype)
            m.copy_(torch.where(cancel > 0, m, new))
        descend([row.param for row in rows], averages, group["lr"], group["weight_decay"], cancel)

    def coefficients(self, a: float | Tensor, n_bins: int, n_bands: int, like: Tensor) -> Tensor:
        """a(f) of each bin."""
        if n_bins < n_bands or n_bands == 1:
            return like.new_ones(n_bins) * a
        band = (torch.arange(n_bins, device=like.device) // (n_bins // n_bands)).clamp_max(
            n_bands - 1
        )
        return (a + self.spread * (2 * band / (n_bands - 1) - 1)).clamp(0.0, 0.999).to(like.dtype)
