"""What every momentum rule promises: a coefficient in [0, 1) a tensor, from the gradients and its own state alone."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from famx.contracts import Contract, build_for_test, require
from famx.nn.hooks import set_observed
from famx.notation import TensorInfo

TENSORS = [
    TensorInfo((40, 300), "other", 0.9, 8, "equal"),
    TensorInfo((32, 16, 3, 3), "conv", 0.9, 6, "log"),
    TensorInfo((1024,), "norm", 0.99, 4, "equal"),
    TensorInfo((64, 64), "attention", 0.92, 12, "split"),
    TensorInfo((300, 40), "embedding", 0.0, 8, "equal"),
    TensorInfo((), "other", 0.5, 8, "equal"),
]
STEPS = 140


def gives_coefficients_in_range(part: type) -> None:
    for scale in (0.0, 1.0, 1e-30):
        rule = build_for_test(part, tensors=TENSORS)
        for step, gradients in _noise(scale):
            _choose(rule, gradients, step)


def is_deterministic(part: type) -> None:
    first, second = build_for_test(part, tensors=TENSORS), build_for_test(part, tensors=TENSORS)
    for step, gradients in _noise():
        same = torch.equal(_choose(first, gradients, step), _choose(second, gradients, step))
        require(same, f"chooses differently anew at step {step}")


def leaves_gradients_and_the_global_generator_alone(part: type) -> None:
    rule, before = build_for_test(part, tensors=TENSORS), torch.get_rng_state()
    for step, gradients in _noise():
        kept = [gradient.clone() for gradient in gradients]
        _choose(rule, gradients, step)
        require(all(map(torch.equal, kept, gradients)), f"changes the gradients at step {step}")
    require(torch.equal(before, torch.get_rng_state()), "draws from the global generator")


def state_round_trip(part: type) -> None:
    rule, other = build_for_test(part, tensors=TENSORS), build_for_test(part, tensors=TENSORS)
    for step, gradients in _noise():
        if step == 117:
            other.load_state_dict(rule.state_dict())
        chosen = _choose(rule, gradients, step)
        same = step < 117 or torch.equal(chosen, _choose(other, gradients, step))
        require(same, f"goes on differently with its state, at step {step}")


def replaces_its_state(part: type) -> None:
    rule = build_for_test(part, tensors=TENSORS)
    for step, gradients in _noise():
        kept = [(name, buffer, buffer.clone()) for name, buffer in rule.named_buffers()]
        _choose(rule, gradients, step)
        for name, buffer, copy in kept:
            require(
                torch.equal(buffer, copy),
                f"writes into its buffer {name}, which nobody can then put back",
            )


def watching_changes_nothing(part: type) -> None:
    rule, watched = build_for_test(part, tensors=TENSORS), build_for_test(part, tensors=TENSORS)
    set_observed(watched, True)
    for step, gradients in _noise():
        same = torch.equal(_choose(rule, gradients, step), _choose(watched, gradients, step))
        require(same, f"chooses differently when watched, at step {step}")


def meta(part: type) -> None:
    rule = build_for_test(part, tensors=TENSORS).to("meta")
    for step in range(1, STEPS):
        chosen = _choose(rule, [torch.empty(info.shape, device="meta") for info in TENSORS], step)
    require(chosen.is_meta, "computes on another device than that of the gradients")


def _choose(rule: nn.Module, gradients: list[Tensor], step: int) -> Tensor:
    """What the rule chooses, if these are coefficients."""
    chosen, n = rule(gradients, step), len(TENSORS)
    require(
        isinstance(chosen, Tensor),
        f"gives a {type(chosen).__name__}, not a tensor of {n} coefficients",
    )
    require(
        chosen.shape == (n,),
        f"gives a tensor of shape {tuple(chosen.shape)}, not of {n} coefficients",
    )
    outside = [] if chosen.is_meta else chosen[~((chosen >= 0) & (chosen < 1))].tolist()
    require(not outside, f"a coefficient is outside [0, 1) at step {step}: {outside[0]:.3g}")
    return chosen


def _noise(scale: float = 1.0) -> Iterator[tuple[int, list[Tensor]]]:
    """White noise, step by step from 1."""
    generator = torch.Generator().manual_seed(0)
    for step in range(1, STEPS):
        yield step, [scale * torch.randn(info.shape, generator=generator) for info in TENSORS]


CONTRACT: tuple[Contract, ...] = (
    gives_coefficients_in_range,
    is_deterministic,
    leaves_gradients_and_the_global_generator_alone,
    state_round_trip,
    replaces_its_state,
    watching_changes_nothing,
    meta,
)
