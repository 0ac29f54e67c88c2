"""Linear warm-up, a plateau, then half a cosine (seed.md: FAMScheduler2; arXiv:1608.03983)."""

from dataclasses import dataclass

from famx.registry import register
from famx.schedule.base import WarmupPlateau


@register
@dataclass(frozen=True)
class WarmupPlateauCosine(WarmupPlateau):
    """Adds a plateau to `warmup_cosine`: the multiple is 1 from step w to step s, then a cosine.

    Args:
        total_steps, warmup_steps, start, end: as in `warmup_cosine`.
        decay_start: s; half-way between the peak and T when None, never before the peak.
    """

    @property
    def default_decay_start(self) -> int:
        """Returns the step half-way between the peak and T."""
        return (self.peak_step + self.total_steps) // 2
