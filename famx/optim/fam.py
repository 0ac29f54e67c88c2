"""Frequency-adaptive momentum: it follows the spectrum of each gradient in time (seed.md)."""

from typing import Any

from torch.optim.optimizer import ParamsT

from famx.optim.ema_sgd import EmaSGD
from famx.registry import register


@register
class FAM(EmaSGD):
    """m <- a·m + (1 - a)·g; θ <- θ - lr·(m + weight_decay·θ), a from the bands of g's spectrum.

    The default rule is `fam` on the spectrum `temporal`.

    Args:
        params: parameters or groups; a group may have `kind`, `alpha` and `n_bands` of its own, see
            `parameter_groups`.
        beta: decay of the history of the bands per step, in [0, 1).
        fam_start_step: step up to which the base momentum stays.
        min_size: entries; only tensors with more of them are measured.
        layer_boost: whether the loudest band changes the momentum of every kind once more.
        options: of `EmaSGD`: `lr`, `alpha` (the momentum a where no band is loud), `weight_decay`,
            `n_bands`, `decoupled`, `debias`, `momentum`, `spectrum`. With another rule as
            `momentum`, set `beta`, `fam_start_step`, `min_size` and `layer_boost` on that rule.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        beta: float = 0.99,
        fam_start_step: int = 100,
        min_size: int = 256,
        layer_boost: bool = True,
        **options: Any,
    ):
        # the options of this class are those of its default rule
        self.default_rule = {
            "name": "fam",
            "beta": beta,
            "start_step": fam_start_step,
            "min_size": min_size,
            "layer_boost": layer_boost,
        }
        super().__init__(params, **options)
