"""MaxFactor on gradients averaged by FAM, except those of small tensors (seed.md)."""

from collections.abc import Mapping
from typing import Any

from torch.optim.optimizer import ParamsT

from famx.optim.maxfactor import MaxFactor
from famx.registry import register


@register
class FAMMaxFactor(MaxFactor):
    """m <- a·m + (1 - a)·g, a from the momentum rule `fam`; then the step of `maxfactor` along m.

    Args:
        params: parameters or groups; a group may have its own `kind`, `alpha` and `n_bands`.
        lr: largest change of a parameter per step, in units of its own RMS.
        options: options of `MaxFactor`, including `momentum` and `spectrum`.
    """

    default_rule: Mapping[str, Any] = {"name": "fam"}
    averages_by_default = True

    def __init__(self, params: ParamsT, *, lr: float = 0.2, **options: Any):
        super().__init__(params, lr=lr, **options)
