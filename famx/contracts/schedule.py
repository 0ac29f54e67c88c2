"""What every schedule promises: a multiple of the peak learning rate as a pure function of the step."""

from itertools import pairwise
from typing import Any

from famx.contracts import Contract, require
from famx.registry import hyperparameters, select_context


def stays_between_nothing_and_the_peak(part: type) -> None:
    for step, multiple in enumerate(_curve(part)):
        require(
            0 <= multiple <= 1, f"leaves the range from 0 to 1: {multiple} at step {step} of 100"
        )


def reaches_the_peak(part: type) -> None:
    require(
        max(_curve(part)) == 1,
        f"never reaches the peak: the largest multiple of 100 steps is {max(_curve(part))}",
    )


def starts_and_ends_where_it_says(part: type) -> None:
    named = {
        name: value for name, value in {"start": 0.25, "end": 0.125}.items() if name in _names(part)
    }
    curve = _curve(part, **named)
    for name, step in (("start", 0), ("end", 100)):
        wanted = named.get(name, curve[step])
        require(
            abs(curve[step] - wanted) < 1e-12,
            f"{name}={wanted}, but the multiple at step {step} is {curve[step]}",
        )


def is_constant_after_the_end(part: type) -> None:
    schedule = _schedule(part)
    for step in (101, 150, 1000, 10**7):
        require(
            schedule(step) == schedule(100),
            f"goes on after its end: {schedule(step)} at {step}, {schedule(100)} at 100",
        )


def has_no_jumps(part: type) -> None:
    curve = _curve(part)
    for step, (here, there) in enumerate(pairwise(curve)):
        require(abs(there - here) <= 0.2, f"jumps from {here} to {there} after step {step} of 100")


def accepts_equal_bounds(part: type) -> None:
    bounds = [{"total_steps": 0}, {"total_steps": 1}]
    for name in ("warmup_steps", "decay_start"):
        if name in _names(part):
            bounds += [{"total_steps": 10, name: steps} for steps in (0, 10, 20)]
    for bound in bounds:
        multiples = [_schedule(part, **bound)(step) for step in range(30)]
        require(all(0 <= multiple <= 1 for multiple in multiples), f"{bound} gives {multiples}")


def depends_on_the_step_alone(part: type) -> None:
    schedule, steps = _schedule(part), list(range(120))
    forward = [schedule(step) for step in steps]
    backward = [schedule(step) for step in reversed(steps)][::-1]
    require(forward == backward, "depends on the order in which steps are asked for")


def _schedule(part: type, total_steps: int = 100, **hyper: Any) -> Any:
    return part(**select_context(part, {"total_steps": total_steps}), **hyper)


def _curve(part: type, **hyper: Any) -> list[float]:
    schedule = _schedule(part, **hyper)
    return [schedule(step) for step in range(101)]


def _names(part: type) -> set[str]:
    return set(hyperparameters(part))


CONTRACT: tuple[Contract, ...] = (
    stays_between_nothing_and_the_peak,
    reaches_the_peak,
    starts_and_ends_where_it_says,
    is_constant_after_the_end,
    has_no_jumps,
    accepts_equal_bounds,
    depends_on_the_step_alone,
)
