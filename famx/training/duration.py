"""The number of steps that fit into the time of a run, from the wall time of the first ones."""

import torch

TIMED_STEPS = 15  # whose mean time is that of all later steps
WARMUP_STEPS = 5  # before them, which load kernels and fill caches
MAX_UNSTEADY_STEPS = 200  # after so many, each step is timed
RESERVE = 0.07  # share of the time left for evaluations and checkpoints


class StepTimer:
    """Estimates the number of steps that fit into a time, from the wall time of the first ones.

    Args:
        max_time: seconds of the run.
        device: device of the steps; its work is finished before the clock is read.
    """

    def __init__(self, max_time: float, device: torch.device):
        self.max_time = max_time
        self.device = device
        self.seconds: list[float] = []
        self.unsteady_steps = 0

    def wait(self) -> None:
        """Waits for the device, where the timed steps begin and where they end."""
        borders = (WARMUP_STEPS, WARMUP_STEPS + TIMED_STEPS)
        if self.device.type == "cuda" and len(self.seconds) + 1 in borders:
            torch.cuda.synchronize(self.device)

    def add(self, seconds: float, is_steady: bool) -> None:
        """Adds the wall time of a step.

        Args:
            is_steady: whether later steps take as long, unlike one that captures a CUDA graph.
        """
        if is_steady or self.unsteady_steps >= MAX_UNSTEADY_STEPS:
            self.seconds.append(seconds)
        else:
            self.unsteady_steps += 1

    def remaining_steps(self, elapsed: float) -> int | None:
        """Returns the number of steps that fit into the rest of the time, None if not known yet.

        Args:
            elapsed: seconds of the run so far.
        """
        if len(self.seconds) < WARMUP_STEPS + TIMED_STEPS:
            return None
        timed = self.seconds[WARMUP_STEPS:]
        remaining = self.max_time * (1 - RESERVE) - elapsed
        return int(remaining / (sum(timed) / len(timed)))
