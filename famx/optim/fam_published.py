"""FAM as published: on shuffled samples its absolute thresholds always fire, its momentum is constant (seed.md)."""

from collections.abc import Callable
from typing import Any

from torch import nn

from famx.optim.ema_sgd import EmaSGD
from famx.registry import register


@register
class FAMPublished(EmaSGD):
    """g <- g + weight_decay·θ; m <- a·m + (1 - a)·g; θ <- θ - lr·m, a from momentum `fam_published` on `shuffled`.

    Args:
        params: parameters or groups; a group may have `kind`, `alpha` and `n_bands` of its own, see `parameter_groups`.
        momentum: factory of another rule; beta, fam_start_step and min_size are then that rule's own.
        spectrum: factory of another measure.
        lr: learning rate; the default is for gradients bounded unit by unit (`trainer.clip`), raw ones want far less.
        alpha: base momentum, in [0, 1).
        beta: decay of the bands' history per step, in [0, 1).
        weight_decay: added to the gradient, times the parameter.
        n_bands: bands of the spectrum.
        fam_start_step: step up to which the base momentum stays.
        min_size: entries a tensor must have more of to be measured.
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
    ):
        self.usual = {
            "name": "fam_published",
            "beta": beta,
            "start_step": fam_start_step,
            "min_size": min_size,
        }
        step = {
            "lr": lr,
            "alpha": alpha,
            "weight_decay": weight_decay,
            "n_bands": n_bands,
            "decoupled": False,
        }
        super().__init__(params, momentum, spectrum, **step)
