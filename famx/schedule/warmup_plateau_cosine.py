"""Linear warm-up, a plateau, then half a cosine (seed.md: FAMScheduler2; arXiv:1608.03983)."""

from dataclasses import dataclass

from famx.registry import register
from famx.schedule.base import Warmup


@register
@dataclass(frozen=True)
class WarmupPlateauCosine(Warmup):
    """As `warmup_cosine`, but the cosine begins at step s: between w and s the multiple is 1.

    Args:
        total_steps, warmup_steps, start, end: as in `warmup_cosine`.
        decay_start: s; half-way between peak and end if not given, never before the peak.
    """

    decay_start: int | None = None

    @property
    def decay(self) -> int:
        """s"""
        middle = (self.peak + self.total_steps) // 2
        return max(self.peak, middle if self.decay_start is None else self.decay_start)
