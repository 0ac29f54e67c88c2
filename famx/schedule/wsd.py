"""Warm-up, stable, decay: a long plateau, then a short straight line down (arXiv:2404.06395)."""

from dataclasses import dataclass

from famx.registry import register
from famx.schedule.base import Warmup


@register
@dataclass(frozen=True)
class WSD(Warmup):
    """As `linear`, but the line begins at step s: between w and s the multiple is 1.

    Args:
        total_steps, warmup_steps, start, end: as in `warmup_cosine`.
        decay_start: s; nine tenths of all steps if not given, never before the peak.
    """

    decay_start: int | None = None

    @property
    def decay(self) -> int:
        """s"""
        late = self.total_steps - self.total_steps // 10
        return max(self.peak, late if self.decay_start is None else self.decay_start)

    def fall(self, progress: float) -> float:
        return 1 - progress
