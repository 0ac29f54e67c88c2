"""MaxFactor on gradients that FAM has averaged; the small tensors FAM leaves alone take MaxFactor plain (seed.md)."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import nn

from famx.optim.maxfactor import MaxFactor
from famx.registry import register


@register
class FAMMaxFactor(MaxFactor):
    """m <- a·m + (1 - a)·g, a from momentum `fam` on spectrum `temporal`; then the step of `maxfactor` along m.

    Args:
        params: parameters or groups; a group may have `kind`, `alpha` and `n_bands` of its own.
        momentum: factory of another rule.
        spectrum: factory of another measure.
        lr: most that a parameter moves in one step, in units of its own size.
        beta2_decay, eps, clip_threshold, weight_decay, gamma, min_lr: as in `maxfactor`.
    """

    usual: ClassVar[Mapping[str, Any]] = {"name": "fam"}

    def __init__(
        self,
        params: Any,
        momentum: Callable[..., nn.Module] | None = None,
        spectrum: Callable[..., nn.Module] | None = None,
        *,
        lr: float = 0.2,
        beta2_decay: float = -0.8,
        eps: tuple[float, float] = (1e-10, 1e-3),
        clip_threshold: float = 1.0,
        weight_decay: float = 0.025,
        gamma: float = 0.99,
        min_lr: float = 1e-7,
    ):
        step = {"lr": lr, "beta2_decay": beta2_decay, "eps": eps, "clip_threshold": clip_threshold}
        super().__init__(
            params,
            momentum,
            spectrum,
            **step,
            weight_decay=weight_decay,
            gamma=gamma,
            min_lr=min_lr,
        )
