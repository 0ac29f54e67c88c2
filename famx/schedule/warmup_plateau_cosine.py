"""Linear warm-up, a plateau, then half a cosine (seed.md: FAMScheduler2; arXiv:1608.03983)."""

from dataclasses import dataclass

from famx.registry import register
from famx.schedule.base import WarmupPlateau


@register
@dataclass(frozen=True)
class WarmupPlateauCosine(WarmupPlateau):
    """As `warmup_cosine`, but the cosine begins at step s: between w and s the multiple is 1.

    Args:
        total_steps, warmup_steps, start, end: as in `warmup_cosine`.
        decay_start: s; half-way between the peak and T when None, never before the peak.
    """

    @property
    def default_decay_start(self) -> int:
        """Returns the step half-way between the peak and T."""
        return (self.peak_step + self.total_steps) // 2
