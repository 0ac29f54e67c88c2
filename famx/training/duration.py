"""The number of steps that fit into the time of a run, from the wall time of its steps so far."""

import math
from typing import NamedTuple

TIMED_STEPS = 15  # whose mean time is that of all later steps
WARMUP_STEPS = 5  # before them, which load kernels and fill caches
MAX_UNSTEADY_STEPS = 200  # after so many, each step is timed
MAX_SHARE = 0.25  # of the time of a run for timing its first steps, and for its evaluations
MAX_EVALUATIONS = 10  # if the steps between evaluations are not set


class StepTimer:
    """Measures the mean wall time of steps.

    Args:
        max_time: seconds of the run.
    """

    def __init__(self, max_time: float):
        self.max_time = max_time
        self.seconds: list[float] = []
        self.unsteady_steps = 0
        self.warmup_steps = WARMUP_STEPS

    def add(self, seconds: float, is_steady: bool) -> None:
        """Adds the wall time of a step.

        Args:
            is_steady: whether later steps take as long, unlike one that captures a CUDA graph.
        """
        if is_steady or self.unsteady_steps >= MAX_UNSTEADY_STEPS:
            self.seconds.append(seconds)
        else:
            self.unsteady_steps += 1

    def is_ready(self, elapsed: float) -> bool:
        """Returns whether enough steps are timed, or so much time has passed that they must do.

        Args:
            elapsed: seconds of the run so far.
        """
        if len(self.seconds) >= WARMUP_STEPS + TIMED_STEPS:
            return True
        return elapsed >= MAX_SHARE * self.max_time

    def restart(self) -> float:
        """Returns the mean time of a step since the last call, and starts again.

        The first call leaves out the first steps.
        """
        timed = self.seconds[self.warmup_steps :] or self.seconds
        self.seconds = []
        self.warmup_steps = 0
        return sum(timed) / max(1, len(timed))


class Plan(NamedTuple):
    """The length of a run, and the steps between its evaluations."""

    total_steps: int
    eval_interval: int


def plan_run(
    step: int,
    remaining: float,
    step_seconds: float,
    evaluation_seconds: float,
    eval_interval: int | None,
    max_steps: int | None,
) -> Plan:
    """Returns how many steps fit into the remaining time together with their evaluations.

    The run has at least one more step, and an evaluation at its end.

    Args:
        step: number of steps so far.
        remaining: seconds of the run that remain.
        step_seconds: seconds of a step.
        evaluation_seconds: seconds of an evaluation and its checkpoint.
        eval_interval: steps between evaluations; None chooses them, so that evaluations need at
            most a quarter of the time.
        max_steps: largest number of steps of the run, None for no limit.
    """
    step_seconds = max(step_seconds, 1e-9)
    if eval_interval is None:
        affordable = MAX_SHARE * remaining / max(evaluation_seconds, 1e-9)
        n_evaluations = max(1, min(MAX_EVALUATIONS, int(affordable)))
        further = (remaining - n_evaluations * evaluation_seconds) / step_seconds
    else:
        # the last evaluation, then steps with their share of the others
        share = evaluation_seconds / eval_interval
        further = (remaining - evaluation_seconds) / (step_seconds + share)
    total_steps = step + max(1, int(further))
    if max_steps is not None:
        total_steps = min(total_steps, max_steps)
    if eval_interval is None:
        eval_interval = max(1, math.ceil(total_steps / n_evaluations))
    return Plan(total_steps, eval_interval)
