"""Guarantee of every optimizer: steps on extreme values remain finite."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from famx.contracts import _steps as steps
from famx.contracts import require
from famx.nn.hooks import SkipsNonFinite

SHAPES = ((), (1,), (30,), (300,), (20, 30), (1, 40), (40, 1), (4, 3, 3, 3))
# of a million entries, for the first cases of each hundred
LARGE_SHAPES = ((1_000_000,), (250, 4_000))
# powers of 10 of weights and gradients: from subnormal numbers to those whose squares, summed over
# a million entries, are still finite
POWERS = (-40.0, 15.0)
PATTERNS = ("all", "zero", "one", "first")


def stays_finite(part: type[Optimizer], cases: int = 20) -> None:
    """Zero, tiny, huge and nearly empty gradients of tiny and huge weights give finite steps.

    Args:
        cases: number of random cases; a long run takes 1,000.
    """
    for case in range(cases):
        generator = torch.Generator().manual_seed(case)
        is_large = case % 100 < len(LARGE_SHAPES)
        shape = LARGE_SHAPES[case % 100] if is_large else SHAPES[_draw(len(SHAPES), generator)]
        # a step relative to its weights must not divide by a gradient of zero
        is_idle = case % 10 == 3
        weight_size = 1e6 if is_idle else _draw_size(generator)
        param = nn.Parameter(torch.randn(shape, generator=generator) * weight_size)
        decay = 0.1 * (case % 2)
        optimizer = steps.build(part, [{"params": [param], "weight_decay": decay}])
        # a few cases are long enough for momentum rules to act
        n_steps = steps.STEPS if case % 10 == 2 else 4
        history = []
        for step in range(n_steps):
            # one entry alone of a million comes first
            pattern = PATTERNS[_draw(len(PATTERNS), generator)]
            if is_large and step == 0:
                pattern = "one"
            if is_idle:
                pattern = "zero"
            size = _draw_size(generator)
            param.grad = _gradient(param, pattern, size, generator)
            history.append(f"{pattern} of {size:.0e}")
            optimizer.step()
            _require_finite(
                optimizer,
                param,
                f"case {case}: weights of {weight_size:.0e}, shape {shape}, "
                f"gradients {', '.join(history[-4:])}",
            )


def _draw(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=generator))


def _draw_size(generator: torch.Generator) -> float:
    """Returns 0 in one of eight draws, else a number whose logarithm is uniform."""
    share = torch.rand((), generator=generator).item()
    low, high = POWERS
    return 0.0 if _draw(8, generator) == 0 else 10.0 ** (low + (high - low) * share)


def _gradient(param: Tensor, pattern: str, size: float, generator: torch.Generator) -> Tensor:
    """Returns a gradient whose entries, or the first, or one of them, have the given size."""
    if pattern == "zero":
        return torch.zeros_like(param)
    gradient = torch.randn(param.shape, generator=generator) * size
    if pattern == "all":
        return gradient
    index = 0 if pattern == "first" else _draw(param.numel(), generator)
    entry = gradient.view(-1)[index].clone()
    gradient.zero_().view(-1)[index] = entry
    return gradient


def _require_finite(optimizer: Optimizer, param: Tensor, where: str) -> None:
    require(param.isfinite().all(), f"makes a parameter not finite, {where}")
    for path, value in steps.state_tensors(optimizer).items():
        require(value.isfinite().all(), f"makes {path} not finite, {where}")
    # finite gradients are no reason to skip a step
    skipped = int(optimizer.skipped) if isinstance(optimizer, SkipsNonFinite) else 0
    require(not skipped, f"skips a step with finite gradients, {where}")
