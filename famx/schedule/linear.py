"""Linear warm-up, then linear decay (Howard and Ruder 2018, arXiv:1801.06146)."""

from dataclasses import dataclass

from famx.registry import register
from famx.schedule.base import Warmup


@register
@dataclass(frozen=True)
class Linear(Warmup):
    """start + (1 - start)·t/w up to step w, then 1 - (1 - end)·(t - w)/(T - w), then end.

    Args:
        total_steps, warmup_steps, start, end: as in `warmup_cosine`.
    """

    def curve(self, progress: float) -> float:
        """Returns a straight line."""
        return 1 - progress
