"""SimpleFAM: momentum rises with the share of a gradient's upper frequencies, large tensors only (seed.md)."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import nn

from famx.optim.ema_sgd import EmaSGD
from famx.registry import register


@register
class SimpleFAM(EmaSGD):
    """m <- a·m + (1 - a)·g; θ <- θ - lr·(m + weight_decay·θ), a from momentum `simple_fam`.

    Args:
        params: parameters or groups; a group may have an `alpha` of its own.
        momentum: factory of another rule.
        spectrum: factory of what that rule measures with.
        lr: learning rate; the default is for gradients bounded unit by unit (`trainer.clip`), raw ones want far less.
        alpha: base momentum, in [0, 1).
        weight_decay: share of a parameter taken away per step, times lr.
    """

    usual: ClassVar[Mapping[str, Any]] = {"name": "simple_fam"}

    def __init__(
        self,
        params: Any,
        momentum: Callable[..., nn.Module] | None = None,
        spectrum: Callable[..., nn.Module] | None = None,
        *,
        lr: float = 20.0,
        alpha: float = 0.9,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, momentum, spectrum, lr=lr, alpha=alpha, weight_decay=weight_decay)
