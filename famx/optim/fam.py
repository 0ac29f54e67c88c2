"""Frequency-adaptive momentum: each tensor's momentum follows the spectrum of its gradient in time (seed.md)."""

from collections.abc import Callable
from typing import Any

from torch import nn

from famx.optim.ema_sgd import EmaSGD
from famx.registry import register


@register
class FAM(EmaSGD):
    """m <- a·m + (1 - a)·g; θ <- θ - lr·(m + weight_decay·θ), a from the bands of the gradient's spectrum.

    Wears momentum `fam` on spectrum `temporal`.

    Args:
        params: parameters or groups; a group may have `kind`, `alpha` and `n_bands` of its own, see `parameter_groups`.
        momentum: factory of another rule; beta, fam_start_step, min_size and layer_boost are then that rule's own.
        spectrum: factory of another measure.
        lr: learning rate; the default is for gradients bounded unit by unit (`trainer.clip`), raw ones want far less.
        alpha: base momentum a where no band is loud, in [0, 1).
        beta: decay of the bands' history per step, in [0, 1).
        weight_decay: share of a parameter taken away per step, times lr.
        n_bands: bands of the spectrum.
        fam_start_step: step up to which the base momentum stays.
        min_size: entries a tensor must have more of to be measured.
        layer_boost: whether the loudest band moves every kind of tensor once more.
        debias: whether m is divided by 1 - product of all a.
    """

    def __init__(
        self,
        params: Any,
        momentum: Callable[..., nn.Module] | None = None,
        spectrum: Callable[..., nn.Module] | None = None,
        *,
        lr: float = 20.0,
        alpha: float = 0.9,
        beta: float = 0.99,
        weight_decay: float = 0.0,
        n_bands: int = 8,
        fam_start_step: int = 100,
        min_size: int = 256,
        layer_boost: bool = True,
        debias: bool = False,
    ):
        self.usual = {
            "name": "fam",
            "beta": beta,
            "start_step": fam_start_step,
            "min_size": min_size,
            "layer_boost": layer_boost,
        }
        step = {
            "lr": lr,
            "alpha": alpha,
            "weight_decay": weight_decay,
            "n_bands": n_bands,
            "debias": debias,
        }
        super().__init__(params, momentum, spectrum, **step)
