"""MaxFactor on gradients averaged by FAM, except those of small tensors (seed.md)."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.optimizer import ParamsT

from famx.optim.maxfactor import MaxFactor
from famx.registry import register


@runtime_checkable
class StartsLate(Protocol):
    """A momentum rule that does not act in its first steps."""

    start_step: int


@register
class FAMMaxFactor(MaxFactor):
    """m <- a·m + (1 - a)·g, a from the momentum rule `fam`; then the step of `maxfactor` along m.

    Up to the rule's `start_step` gradients are not averaged (a = 0), as in `maxfactor`.

    Args:
        params: parameters or groups; a group may have its own `kind`, `alpha` and `n_bands`.
        lr: largest change of a parameter per step, in units of its own RMS.
        options: options of `MaxFactor`, including `momentum` and `spectrum`.
    """

    default_rule: Mapping[str, Any] = {"name": "fam"}
    averages_by_default = True

    def __init__(self, params: ParamsT, *, lr: float = 0.2, **options: Any):
        super().__init__(params, lr=lr, **options)

    def _choose_momentum(
        self, gradients: Sequence[Tensor], found_inf: Float[Tensor, ""]
    ) -> Float[Tensor, " tensors"]:
        coefficients = super()._choose_momentum(gradients, found_inf)
        if not isinstance(self.rule, StartsLate):
            return coefficients
        # a 0-d tensor if steps are counted on the device
        acts = self.calls > self.rule.start_step
        if isinstance(acts, Tensor):
            return torch.where(acts, coefficients, 0.0)
        return coefficients if acts else torch.zeros_like(coefficients)
