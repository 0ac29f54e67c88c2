"""SimpleFAM: momentum grows with the share of the spectrum's upper half (seed.md)."""

from collections.abc import Mapping
from typing import Any

from famx.optim.ema_sgd import EmaSGD
from famx.registry import register


@register
class SimpleFAM(EmaSGD):
    """m <- a·m + (1 - a)·g; θ <- θ - lr·(m + weight_decay·θ), a from a momentum rule.

    The default rule is `simple_fam`, which measures large tensors only. All arguments are those of
    `EmaSGD`.
    """

    default_rule: Mapping[str, Any] = {"name": "simple_fam"}
