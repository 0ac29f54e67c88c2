"""Linear warm-up, then half a cosine (seed.md: FAMScheduler; arXiv:1608.03983)."""

from dataclasses import dataclass

from famx.registry import register
from famx.schedule.base import Warmup


@register
@dataclass(frozen=True)
class WarmupCosine(Warmup):
    """start + (1 - start)·t/w up to step w, then half a cosine, then end.

    The cosine is end + (1 - end)·(1 + cos(π·(t - w)/(T - w)))/2.

    Args:
        total_steps: T, the step from which the multiple stays at `end`.
        warmup_steps: w, the step of the peak; a tenth of `total_steps` when None, never beyond it.
        start: multiple of the peak at step 0, in [0, 1]; 1 / (w + 1) when None, so that the rate
            rises in w + 1 equal parts and the first step has the first of them.
        end: multiple of the peak at the last step, in [0, 1].
    """
