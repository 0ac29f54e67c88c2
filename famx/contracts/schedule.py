"""Contracts of schedules: multiples of the peak in [0, 1], functions of the step alone."""

from collections.abc import Callable
from itertools import pairwise

from famx.contracts import Contract, require
from famx.registry import hyperparameters, select_context
from famx.schedule.base import Schedule

TOTAL_STEPS = 100


def stays_between_zero_and_peak(part: type[Schedule]) -> None:
    """All multiples of the peak are in [0, 1]."""
    # NaN fails the comparison too
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
    # neither 0 nor 1, which a schedule could begin or end at anyway
    bounds = {"start": 0.25, "end": 0.125}
    hyper = {name: value for name, value in bounds.items() if name in hyperparameters(part)}
    curve = _curve(part, **hyper)
    for name, step in (("start", 0), ("end", TOTAL_STEPS)):
        if name in hyper:
            require(
                abs(curve[step] - hyper[name]) < 1e-12,
                f"{name}={hyper[name]}, but the multiple at step {step} is {curve[step]}",
            )


def moves_in_the_first_step(part: type[Schedule]) -> None:
    """No step before the decay has a multiple of 0, the first included."""
    # a warm-up of the default length, none at all, and one of a single step
    lengths: list[dict[str, int]] = [{}]
    if "warmup_steps" in hyperparameters(part):
        lengths += [{"warmup_steps": steps} for steps in (0, 1, 50)]
    for length in lengths:
        curve = _curve(part, **length)
        peak = curve.index(max(curve))
        require(min(curve[: peak + 1]) > 0, f"{length}: the first step is {curve[0]} of the peak")


def is_constant_after_the_end(part: type[Schedule]) -> None:
    """The multiple does not change after the last step."""
    schedule = _build(part)
    # the step after the end, and far ones
    last = schedule(TOTAL_STEPS)
    for step in (101, 150, 1000, 10**7):
        require(
            schedule(step) == last,
            f"changes after its end: {schedule(step)} at step {step}, {last} at 100",
        )


def has_no_jumps(part: type[Schedule]) -> None:
    """Multiples of successive steps differ by at most 0.2."""
    # the shortest default phase has 10 of the 100 steps: half a cosine moves by up to 0.16 a step
    for step, (multiple, following) in enumerate(pairwise(_curve(part))):
        require(
            abs(following - multiple) <= 0.2,
            f"jumps from {multiple} to {following} after step {step} of 100",
        )


def accepts_equal_bounds(part: type[Schedule]) -> None:
    """The bounds of its phases may coincide, also at 0, and exceed the total."""
    # no step, a single step, and bounds at the beginning, at the end and beyond it
    bounds: list[dict[str, int]] = [{"total_steps": 0}, {"total_steps": 1}]
    for name in ("warmup_steps", "decay_start"):
        if name in hyperparameters(part):
            bounds += [{"total_steps": 10, name: steps} for steps in (0, 10, 20)]
    for bound in bounds:
        schedule = _build(part, **bound)
        # a phase of no steps must not divide by zero
        multiples = [schedule(step) for step in range(30)]
        require(all(0 <= multiple <= 1 for multiple in multiples), f"{bound} gives {multiples}")


def depends_on_the_step_alone(part: type[Schedule]) -> None:
    """Calls in any order give the same multiples."""
    # a single object, which could count its calls
    schedule = _build(part)
    forward = [schedule(step) for step in range(120)]
    backward = [schedule(step) for step in reversed(range(120))]
    require(forward == backward[::-1], "depends on the order of the calls")


def _build(part: type[Schedule], total_steps: int = TOTAL_STEPS, **hyper: int | float) -> Schedule:
    # hyperparameters are those of the part, which its base class does not declare
    constructor: Callable[..., Schedule] = part
    return constructor(**select_context(part, {"total_steps": total_steps}), **hyper)


def _curve(part: type[Schedule], **hyper: int | float) -> list[float]:
    """Returns the multiple at every step from 0 to `TOTAL_STEPS`."""
    schedule = _build(part, TOTAL_STEPS, **hyper)
    return [schedule(step) for step in range(TOTAL_STEPS + 1)]


CONTRACT: tuple[Contract, ...] = (
    stays_between_zero_and_peak,
    reaches_the_peak,
    starts_and_ends_as_set,
    moves_in_the_first_step,
    is_constant_after_the_end,
    has_no_jumps,
    accepts_equal_bounds,
    depends_on_the_step_alone,
)
ESSENTIAL: tuple[Contract, ...] = (depends_on_the_step_alone,)
