"""Contracts of schedules."""

from itertools import pairwise
from typing import Any

from famx.contracts import Contract, require
from famx.registry import hyperparameters, select_context
from famx.schedule.base import Schedule

TOTAL_STEPS = 100


def stays_between_zero_and_peak(part: type[Schedule]) -> None:
    """All multiples of the peak are in [0, 1]."""
    for step, multiple in enumerate(_curve(part)):
        require(
            0 <= multiple <= 1, f"leaves the range from 0 to 1: {multiple} at step {step} of 100"
        )


def reaches_the_peak(part: type[Schedule]) -> None:
    """Some multiple is 1."""
    largest = max(_curve(part))
    require(largest == 1, f"never reaches the peak: the largest multiple of 100 steps is {largest}")


def starts_and_ends_as_set(part: type[Schedule]) -> None:
    """The first and the last multiple are the hyperparameters `start` and `end`, if it has them."""
    hyper = {"start": 0.25, "end": 0.125}
    hyper = {name: value for name, value in hyper.items() if name in hyperparameters(part)}
    curve = _curve(part, **hyper)
    for name, step in (("start", 0), ("end", TOTAL_STEPS)):
        if name in hyper:
            require(
                abs(curve[step] - hyper[name]) < 1e-12,
                f"{name}={hyper[name]}, but the multiple at step {step} is {curve[step]}",
            )


def is_constant_after_the_end(part: type[Schedule]) -> None:
    """The multiple does not change after the last step."""
    schedule = _build(part)
    last = schedule(TOTAL_STEPS)
    for step in (101, 150, 1000, 10**7):
        require(
            schedule(step) == last,
            f"changes after its end: {schedule(step)} at step {step}, {last} at 100",
        )


def has_no_jumps(part: type[Schedule]) -> None:
    """Multiples of successive steps differ by at most 0.2."""
    for step, (multiple, following) in enumerate(pairwise(_curve(part))):
        require(
            abs(following - multiple) <= 0.2,
            f"jumps from {multiple} to {following} after step {step} of 100",
        )


def accepts_equal_bounds(part: type[Schedule]) -> None:
    """The bounds of its phases may coincide, also at 0, and exceed the total."""
    bounds: list[dict[str, int]] = [{"total_steps": 0}, {"total_steps": 1}]
    for name in ("warmup_steps", "decay_start"):
        if name in hyperparameters(part):
            bounds += [{"total_steps": 10, name: steps} for steps in (0, 10, 20)]
    for bound in bounds:
        schedule = _build(part, **bound)
        multiples = [schedule(step) for step in range(30)]
        require(all(0 <= multiple <= 1 for multiple in multiples), f"{bound} gives {multiples}")


def depends_on_the_step_alone(part: type[Schedule]) -> None:
    """Calls in any order agree."""
    schedule = _build(part)
    forward = [schedule(step) for step in range(120)]
    backward = [schedule(step) for step in reversed(range(120))]
    require(forward == backward[::-1], "depends on the order of the calls")


def _build(part: type[Schedule], total_steps: int = TOTAL_STEPS, **hyper: Any) -> Schedule:
    return part(**select_context(part, {"total_steps": total_steps}), **hyper)


def _curve(part: type[Schedule], **hyper: Any) -> list[float]:
    """Returns the multiples of all steps."""
    schedule = _build(part, **hyper)
    return [schedule(step) for step in range(TOTAL_STEPS + 1)]


CONTRACT: tuple[Contract, ...] = (
    stays_between_zero_and_peak,
    reaches_the_peak,
    starts_and_ends_as_set,
    is_constant_after_the_end,
    has_no_jumps,
    accepts_equal_bounds,
    depends_on_the_step_alone,
)
