"""Schedules of the learning rate."""

from famx.schedule.constant import Constant
from famx.schedule.linear import Linear
from famx.schedule.warmup_cosine import WarmupCosine
from famx.schedule.warmup_plateau_cosine import WarmupPlateauCosine
from famx.schedule.wsd import WSD

__all__ = ["WSD", "Constant", "Linear", "WarmupCosine", "WarmupPlateauCosine"]
