"""Frequency-adaptive momentum, from the spectrum over time of each gradient (seed.md)."""

from typing import Any

from torch.optim.optimizer import ParamsT

from famx.optim.ema_sgd import EmaSGD
from famx.registry import register


@register
class FAM(EmaSGD):
    """m <- a·m + (1 - a)·g; θ <- θ - lr·(m + weight_decay·θ), a from the bands of g's spectrum.

    The default rule is `fam` on the spectrum `temporal`.

    Args:
        params: parameters or groups; a group may have its own `kind`, `alpha` and `n_bands`, see
            `parameter_groups`.
        beta: decay of the history of the bands per step, in [0, 1).
        fam_start_step: number of first steps with the base momentum.
        min_size: only tensors with more elements are measured.
        layer_boost: whether the largest band changes the momentum once more, for every kind.
        options: options of `EmaSGD`: `lr`, `alpha` (the momentum a while no band fires),
            `weight_decay`, `n_bands`, `decoupled`, `debias`, `momentum`, `spectrum`. With another
            rule as `momentum`, set `beta`, `fam_start_step`, `min_size` and `layer_boost` on it.
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
