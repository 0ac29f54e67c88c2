"""FAM as published: its absolute thresholds always fire, so its momentum is constant (seed.md)."""

from typing import Any

from torch.optim.optimizer import ParamsT

from famx.optim.ema_sgd import EmaSGD
from famx.registry import register


@register
class FAMPublished(EmaSGD):
    """g <- g + weight_decay·θ; m <- a·m + (1 - a)·g; θ <- θ - lr·m, a from a momentum rule.

    The default rule is `fam_published` on the spectrum `shuffled`.

    Args:
        params: parameters or groups; a group may have its own `kind`, `alpha` and `n_bands`, see
            `parameter_groups`.
        beta: decay of the history of the bands per step, in [0, 1).
        fam_start_step: number of first steps with the base momentum.
        min_size: only tensors with more elements are measured.
        decoupled: True applies the weight decay to the parameter instead of the gradient.
        options: options of `EmaSGD`: `lr`, `alpha`, `weight_decay`, `n_bands`, `debias`,
            `momentum`, `spectrum`. With another rule as `momentum`, set `beta`, `fam_start_step`
            and `min_size` on it.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        beta: float = 0.99,
        fam_start_step: int = 100,
        min_size: int = 256,
        decoupled: bool = False,
        **options: Any,
    ):
        # the options of this class are those of its default rule
        self.default_rule = {
            "name": "fam_published",
            "beta": beta,
            "start_step": fam_start_step,
            "min_size": min_size,
        }
        super().__init__(params, decoupled=decoupled, **options)
