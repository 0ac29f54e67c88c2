"""Schedules: the interface, and warm-up followed by a decay."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import cos, pi


class Schedule(ABC):
    """The learning rate as a multiple of its peak, a function of the step alone.

    A schedule is built with `total_steps`, the step from which it is constant.
    """

    @abstractmethod
    def __call__(self, step: int) -> float:
        """Returns the multiple of the peak at a step, counted from 0; in [0, 1]."""


@dataclass(frozen=True)
class Warmup(Schedule):
    """start + (1 - start)·t/w up to step w, then end + (1 - end)·curve((t - w)/(T - w)), then end.

    Args:
        total_steps: T, the step from which the multiple stays at `end`.
        warmup_steps: w, the step of the peak; a tenth of `total_steps` when None, never beyond it.
        start: multiple of the peak at step 0, in [0, 1]; 1 / (w + 1) when None, so that the rate
            rises in w + 1 equal parts and the first step has the first of them.
        end: multiple of the peak at the last step, in [0, 1].
    """

    total_steps: int
    warmup_steps: int | None = None
    start: float | None = None
    end: float = 0.0

    def __post_init__(self):
        # checked when built, not after hours of training
        _check_step("total_steps", self.total_steps)
        _check_step("warmup_steps", self.warmup_steps)
        for name, multiple in (("start", self.start), ("end", self.end)):
            if multiple is not None and not 0 <= multiple <= 1:
                raise ValueError(f"{name}={multiple} must be between 0 and 1 times the peak")

    @property
    def peak_step(self) -> int:
        """Returns w, the step at which the warm-up ends."""
        if self.warmup_steps is None:
            return self.total_steps // 10
        return min(self.warmup_steps, self.total_steps)

    @property
    def decay_step(self) -> int:
        """Returns the step at which the decay begins."""
        return self.peak_step

    def __call__(self, step: int) -> float:
        """See `Schedule.__call__`."""
        # checked first, so that a schedule of 0 steps is at its end
        if step >= self.total_steps:
            return self.end
        # warm-up
        if step < self.peak_step:
            start = 1 / (self.peak_step + 1) if self.start is None else self.start
            return start + (1 - start) * step / self.peak_step
        # plateau, a single step if the decay begins at the peak
        if step <= self.decay_step:
            return 1.0
        # decay
        progress = (step - self.decay_step) / (self.total_steps - self.decay_step)
        return self.end + (1 - self.end) * self.curve(progress)

    def curve(self, progress: float) -> float:
        """Returns the shape of the decay, from 1 to 0 for progress from 0 to 1: half a cosine."""
        return (1 + cos(pi * progress)) / 2


@dataclass(frozen=True)
class WarmupPlateau(Warmup):
    """Adds a plateau to `Warmup`: the multiple is 1 from step w to step s, where the decay begins.

    Args:
        decay_start: s; the default of the schedule when None, never before the peak.
    """

    decay_start: int | None = None

    def __post_init__(self):
        super().__post_init__()
        _check_step("decay_start", self.decay_start)

    @property
    @abstractmethod
    def default_decay_start(self) -> int:
        """Returns s for `decay_start=None`."""

    @property
    def decay_step(self) -> int:
        """Returns s, the step at which the plateau ends."""
        start = self.default_decay_start if self.decay_start is None else self.decay_start
        return max(self.peak_step, start)


def _check_step(name: str, step: int | None) -> None:
    # `not step >= 0` also refuses NaN
    if step is not None and not step >= 0:
        raise ValueError(f"{name}={step} must be at least 0, since steps are counted from 0")
