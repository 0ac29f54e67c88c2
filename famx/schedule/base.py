"""What schedules share: a multiple of the peak as a pure function of the step."""

from dataclasses import dataclass
from math import cos, pi


@dataclass(frozen=True)
class Warmup:
    """start + (1 - start)·t/w up to step w, 1 up to step s, end + (1 - end)·fall((t - s)/(T - s)), then end.

    Args:
        total_steps: T, the step from which the multiple stays at `end`.
        warmup_steps: w, the step of the peak; a tenth of `total_steps` if not given, never beyond it.
        start: multiple of the peak at step 0, in [0, 1].
        end: multiple of the peak at the last step, in [0, 1].
    """

    total_steps: int
    warmup_steps: int | None = None
    start: float = 0.0
    end: float = 0.0

    def __post_init__(self):
        for name in ("total_steps", "warmup_steps", "decay_start"):
            if not (getattr(self, name, None) or 0) >= 0:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be at least 0, steps are counted from there"
                )
        for name in ("start", "end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name}={getattr(self, name)} is outside 0 to 1, it is a multiple of the peak"
                )

    @property
    def peak(self) -> int:
        """w"""
        return (
            self.total_steps // 10
            if self.warmup_steps is None
            else min(self.warmup_steps, self.total_steps)
        )

    @property
    def decay(self) -> int:
        """s"""
        return self.peak

    def __call__(self, step: int) -> float:
        if step >= self.total_steps:
            return self.end
        if step < self.peak:
            return self.start + (1 - self.start) * step / self.peak
        if step <= self.decay:
            return 1.0
        progress = (step - self.decay) / (self.total_steps - self.decay)
        return self.end + (1 - self.end) * self.fall(progress)

    def fall(self, progress: float) -> float:
        """From 1 to 0 while progress goes from 0 to 1: half a cosine."""
        return (1 + cos(pi * progress)) / 2
