"""Warm-up, stable, decay: a long plateau, then a short linear decay (arXiv:2404.06395)."""

from dataclasses import dataclass

from famx.registry import register
from famx.schedule.base import WarmupPlateau


@register
@dataclass(frozen=True)
class WSD(WarmupPlateau):
    """Adds a plateau to `linear`: the multiple is 1 from step w to step s, then decays linearly.

    Args:
        total_steps, warmup_steps, start, end: as in `warmup_cosine`.
        decay_start: s; nine tenths of all steps when None, never before the peak.
    """

    @property
    def default_decay_start(self) -> int:
        """Returns the step after nine tenths of all steps."""
        return self.total_steps - self.total_steps // 10

    def curve(self, progress: float) -> float:
        """Returns a straight line."""
        return 1 - progress
