"""Gradients, steps and state that the laws of optimizers walk through."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from famx.contracts import ContractError, require
from famx.registry import select_context

SHAPES = ((), (7,), (300,), (20, 30), (4, 3, 3, 3), (40, 301))
STEPS = 125


class Reads(TorchDispatchMode):
    """Records what reads a tensor's value on the host."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in (
            "aten::_local_scalar_dense",
            "aten::nonzero",
            "aten::equal",
            "aten::is_nonzero",
        ):
            self.found.append(func.name())
        return func(*args, **(kwargs or {}))


def over(part: type, params: Any, **hyper: Any) -> torch.optim.Optimizer:
    return part(**select_context(part, {"params": params}), **hyper)


def descends(
    part: type,
    start: list[Tensor],
    loss: Callable[[list[Tensor]], Tensor],
    share: float,
    steps: int = 150,
) -> None:
    """At some learning rate `steps` steps leave no more than `share` of the loss."""
    reached = {}
    for lr in (0.01, 0.1, 1.0, 0.001):
        params = [nn.Parameter(value.clone()) for value in start]
        optimizer = over(part, params, lr=lr)
        first = loss(params).item()
        for _ in range(steps):
            optimizer.zero_grad()
            loss(params).backward()
            optimizer.step()
        reached[lr] = loss(params).item() / first
        if reached[lr] <= share:
            return
    found = ", ".join(f"{left:.3g} with lr={lr}" for lr, left in reached.items())
    raise ContractError(f"does not descend to {share} of the loss in {steps} steps, but to {found}")


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def noise(steps: int = STEPS) -> Iterator[list[Tensor]]:
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        yield [torch.randn(shape, generator=generator) for shape in SHAPES]


def give(params: list[nn.Parameter], gradients: list[Tensor]) -> None:
    for p, gradient in zip(params, gradients, strict=True):
        p.grad = gradient.to(p.dtype) if p.dtype is not gradient.dtype else gradient


def take(
    optimizer: torch.optim.Optimizer,
    params: list[nn.Parameter],
    gradients: list[list[Tensor]] | None = None,
) -> None:
    for row in noise() if gradients is None else gradients:
        give(params, row)
        optimizer.step()
    finite(params)


def finite(params: list[nn.Parameter]) -> None:
    for p in params:
        require(
            p.is_meta or p.isfinite().all(),
            f"steps make a parameter of shape {tuple(p.shape)} not finite",
        )


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for key, inner in enumerate(value):
            yield from leaves(inner, f"{path}.{key}")
    else:
        yield path, value


def tensors(optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    return [
        (path, value)
        for path, value in leaves(optimizer.state_dict(), "state")
        if isinstance(value, Tensor)
    ]


def copies(optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    return [(path, value.detach().clone()) for path, value in tensors(optimizer)]
