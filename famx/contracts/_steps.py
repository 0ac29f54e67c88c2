"""Parameters, gradients, steps and state that the contracts of optimizers share."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from famx.contracts import ContractError, require
from famx.registry import select_context

SHAPES = ((), (7,), (300,), (20, 30), (4, 3, 3, 3), (40, 301))
STEPS = 125
HOST_READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero")


class HostReads(TorchDispatchMode):
    """Records the operations that read a tensor's value on the host, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in HOST_READS:
            self.operations.append(func.name())
        return func(*args, **(kwargs or {}))


def build(part: type, params: Any, **hyper: Any) -> torch.optim.Optimizer:
    """Builds an optimizer over parameters or groups."""
    return part(**select_context(part, {"params": params}), **hyper)


def require_descent(
    part: type,
    start: Sequence[Tensor],
    loss_of: Callable[[Sequence[Tensor]], Tensor],
    share: float,
    steps: int = 150,
) -> None:
    """Requires that at some learning rate `steps` steps leave at most `share` of the loss."""
    shares = {}
    for lr in (0.01, 0.1, 1.0, 0.001):
        params = [nn.Parameter(value.clone()) for value in start]
        optimizer = build(part, params, lr=lr)
        initial = loss_of(params).item()
        for _ in range(steps):
            optimizer.zero_grad()
            loss_of(params).backward()
            optimizer.step()
        shares[lr] = loss_of(params).item() / initial
        if shares[lr] <= share:
            return
    results = ", ".join(f"{value:.3g} with lr={lr}" for lr, value in shares.items())
    raise ContractError(
        f"does not descend to {share} of the loss in {steps} steps, but to {results}"
    )


def make_parameters() -> list[nn.Parameter]:
    """Returns one parameter of each of `SHAPES`, the same in every call."""
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def random_gradients(steps: int = STEPS) -> Iterator[list[Tensor]]:
    """Yields a gradient for each parameter and step, the same in every call."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        yield [torch.randn(shape, generator=generator) for shape in SHAPES]


def set_gradients(params: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    for p, gradient in zip(params, gradients, strict=True):
        p.grad = gradient.to(p.dtype) if p.dtype is not gradient.dtype else gradient


def take_steps(
    optimizer: torch.optim.Optimizer,
    params: Sequence[nn.Parameter],
    gradients: Sequence[Sequence[Tensor]] | None = None,
) -> None:
    """Takes a step for each row of gradients; without them, `STEPS` steps of random ones."""
    for row in random_gradients() if gradients is None else gradients:
        set_gradients(params, row)
        optimizer.step()
    require_finite_parameters(params)


def require_finite_parameters(params: Sequence[nn.Parameter]) -> None:
    for p in params:
        require(
            p.is_meta or p.isfinite().all(),
            f"steps make a parameter of shape {tuple(p.shape)} not finite",
        )


def all_equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yields every value inside dicts and lists with its path."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{path}.{key}")
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from leaves(value, f"{path}.{i}")
    else:
        yield path, tree


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns every tensor of an optimizer's state_dict by its path."""
    tensors = {}
    for path, value in leaves(optimizer.state_dict(), "state"):
        if isinstance(value, Tensor):
            tensors[path] = value
    return tensors


def copy_state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {path: value.detach().clone() for path, value in state_tensors(optimizer).items()}
