"""Contracts of momentum rules: coefficients in [0, 1), from gradients and their own state alone."""

from collections.abc import Iterator

import torch
from torch import Tensor

from famx.contracts import Contract, ContractError, build_for_test, require
from famx.momentum.base import MomentumRule
from famx.nn.hooks import set_observed
from famx.notation import TensorInfo

# every kind and layout, no momentum at all, and tensors too small for a rule to follow
TENSORS = [
    TensorInfo((40, 300), "other", 0.9, 8, "equal"),
    TensorInfo((32, 16, 3, 3), "conv", 0.9, 6, "log"),
    TensorInfo((1024,), "norm", 0.99, 4, "equal"),
    TensorInfo((64, 64), "attention", 0.92, 12, "split"),
    TensorInfo((300, 40), "embedding", 0.0, 8, "equal"),
    TensorInfo((), "other", 0.5, 8, "equal"),
]
# rules begin to act at step 100, and measure every 8 steps, so several times before the end
STEPS = 140
# between two measurements, while the rule acts
SAVED_AT = 117


def coefficients_in_range(part: type[MomentumRule]) -> None:
    """Coefficients are in [0, 1), also for zero and tiny gradients."""
    # squares of the smallest gradients are zero in float32
    for scale in (0.0, 1.0, 1e-30):
        rule = _build(part)
        for step, gradients in _noise(scale):
            _choose(rule, gradients, step)


def is_deterministic(part: type[MomentumRule]) -> None:
    """Two rules choose the same for the same gradients."""
    first = _build(part)
    second = _build(part)
    for step, gradients in _noise():
        same = torch.equal(_choose(first, gradients, step), _choose(second, gradients, step))
        require(same, f"two rules choose differently for the same gradients at step {step}")


def no_side_effects(part: type[MomentumRule]) -> None:
    """Gradients and the global random generator are not changed."""
    rule = _build(part)
    random_state = torch.get_rng_state()
    for step, gradients in _noise():
        copies = [gradient.clone() for gradient in gradients]
        _choose(rule, gradients, step)
        require(all(map(torch.equal, copies, gradients)), f"changes the gradients at step {step}")
    require(torch.equal(random_state, torch.get_rng_state()), "draws from the global generator")


def state_round_trip(part: type[MomentumRule]) -> None:
    """A rule that loads the state of another continues like it."""
    original = _build(part)
    restored = _build(part)
    for step, gradients in _noise():
        # until here the restored rule has seen nothing
        if step == SAVED_AT:
            restored.load_state_dict(original.state_dict())
        expected = _choose(original, gradients, step)
        if step >= SAVED_AT:
            same = torch.equal(expected, _choose(restored, gradients, step))
            require(same, f"continues differently from its state, at step {step}")


def buffers_not_mutated(part: type[MomentumRule]) -> None:
    """A call replaces buffers and never writes into them, so that they can be restored."""
    rule = _build(part)
    for step, gradients in _noise():
        # the tensors themselves, which after the call may no longer be the rule's buffers
        buffers = [(name, buffer, buffer.clone()) for name, buffer in rule.named_buffers()]
        _choose(rule, gradients, step)
        for name, buffer, copy in buffers:
            require(
                torch.equal(buffer, copy),
                f"writes into its buffer {name}, which then cannot be restored",
            )


def observing_changes_nothing(part: type[MomentumRule]) -> None:
    """The coefficients are the same while metrics are collected."""
    rule = _build(part)
    observed = _build(part)
    set_observed(observed, True)
    for step, gradients in _noise():
        same = torch.equal(_choose(rule, gradients, step), _choose(observed, gradients, step))
        require(same, f"chooses differently when observed, at step {step}")


def meta(part: type[MomentumRule]) -> None:
    """All computation is on the device of the gradients."""
    # meta tensors have no values, so an operation on the host raises an error
    rule = _build(part).to("meta")
    gradients = [torch.empty(info.shape, device="meta") for info in TENSORS]
    for step in range(1, STEPS):
        coefficients = _choose(rule, gradients, step)
    require(coefficients.is_meta, "computes on another device than that of the gradients")


def _build(part: type[MomentumRule]) -> MomentumRule:
    return build_for_test(part, tensors=TENSORS)


def _choose(rule: MomentumRule, gradients: list[Tensor], step: int) -> Tensor:
    """Returns the coefficients of one call, after checking their type, shape and range."""
    # type and shape
    coefficients = rule(gradients, step)
    n = len(TENSORS)
    require(
        isinstance(coefficients, Tensor),
        f"gives a {type(coefficients).__name__}, not a tensor of {n} coefficients",
    )
    require(
        coefficients.shape == (n,),
        f"gives a tensor of shape {tuple(coefficients.shape)}, not of {n} coefficients",
    )
    # range; NaN is in none
    if not coefficients.is_meta:
        valid = (coefficients >= 0) & (coefficients < 1)
        for outside in coefficients[~valid].tolist():
            raise ContractError(f"a coefficient is outside [0, 1) at step {step}: {outside:.3g}")
    return coefficients


def _noise(scale: float = 1.0) -> Iterator[tuple[int, list[Tensor]]]:
    """Yields steps, counted from 1, and gradients of white noise."""
    generator = torch.Generator().manual_seed(0)
    for step in range(1, STEPS):
        yield step, [scale * torch.randn(info.shape, generator=generator) for info in TENSORS]


CONTRACT: tuple[Contract, ...] = (
    coefficients_in_range,
    is_deterministic,
    no_side_effects,
    state_round_trip,
    buffers_not_mutated,
    observing_changes_nothing,
    meta,
)
ESSENTIAL: tuple[Contract, ...] = (
    is_deterministic,
    no_side_effects,
    state_round_trip,
    buffers_not_mutated,
)
