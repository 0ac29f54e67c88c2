from famx.schedule.constant import Constant
from famx.schedule.warmup_cosine import WarmupCosine
from famx.schedule.warmup_plateau_cosine import WarmupPlateauCosine

__all__ = ["Constant", "WarmupCosine", "WarmupPlateauCosine"]
