"""Adafactor, torch's own: second moments of matrices as rows times columns (arXiv:1804.04235)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from famx.optim._torch import TorchOptimizer
from famx.registry import register


@register
class Adafactor(TorchOptimizer, torch.optim.Adafactor):
    """θ <- θ - max(eps₂, RMS θ)·min(lr, 1/sqrt t)·U / max(1, RMS(U)/d), U = g / sqrt(V), V = R·C / mean(R).

    Args:
        params: parameters or groups.
        lr: most that a parameter moves in one step, in units of its own size.
        beta2_decay: exponent of t in the weight of the new squares, below 0.
        eps: least root of V (that of the dtype if not given), and the least size that a parameter is taken to have.
        d: clips RMS(U).
        weight_decay: share of a parameter taken away per step, times lr.
    """

    def __init__(
        self,
        params: Any,
        momentum: Callable[..., nn.Module] | None = None,
        spectrum: Callable[..., nn.Module] | None = None,
        *,
        lr: float = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
    ):
        options = {"lr": lr, "beta2_decay": beta2_decay, "eps": eps, "d": d}
        super().__init__(params, momentum, spectrum, **options, weight_decay=weight_decay)
