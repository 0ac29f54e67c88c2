"""MaxFactor on gradients averaged by FAM; tensors too small for FAM take it plain (seed.md)."""

from collections.abc import Mapping
from typing import Any

from torch.optim.optimizer import ParamsT

from famx.optim.maxfactor import MaxFactor
from famx.registry import register


@register
class FAMMaxFactor(MaxFactor):
    """m <- a·m + (1 - a)·g, a from the momentum rule `fam`; then the step of `maxfactor` along m.

    Args:
        params: parameters or groups; a group may have `kind`, `alpha` and `n_bands` of its own.
        lr: largest change of a parameter per step, in units of its own RMS.
        options: of `MaxFactor`, `momentum` and `spectrum` among them.
    """

    default_rule: Mapping[str, Any] = {"name": "fam"}
    averages_by_default = True

    def __init__(self, params: ParamsT, *, lr: float = 0.2, **options: Any):
        super().__init__(params, lr=lr, **options)
