"""Parameters, gradients, steps and state that the contracts of optimizers share."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.optim.optimizer import ParamsT
from torch.utils._python_dispatch import TorchDispatchMode

from famx.contracts import require
from famx.registry import select_context

# 0 to 4 dimensions; numbers of entries on both sides of 256 and of 1,000, from which on momentum
# rules follow a tensor
SHAPES = ((), (7,), (300,), (20, 30), (4, 3, 3, 3), (40, 301))
# rules begin to act at step 100, and measure every 8 steps
STEPS = 125
# operations that copy a value to the host, or whose output has a size that depends on values
HOST_READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero")


class HostReads(TorchDispatchMode):
    """Records the operations that read a tensor's value on the host, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if func.name() in HOST_READS:
            self.operations.append(func.name())
        return func(*args, **(kwargs or {}))


def build(
    part: type[torch.optim.Optimizer], params: ParamsT, **hyper: float | bool
) -> torch.optim.Optimizer:
    """Builds an optimizer over parameters or groups."""
    # torch's constructor, unlike those of parts, takes its hyperparameters as one dict
    constructor: Callable[..., torch.optim.Optimizer] = part
    return constructor(**select_context(part, {"params": params}), **hyper)


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
        # the tensor itself where possible, so that a step that writes into it is noticed
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
        # meta tensors have no values
        require(
            p.is_meta or p.isfinite().all(),
            f"steps make a parameter of shape {tuple(p.shape)} not finite",
        )


def all_equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def leaves(tree: object, path: str) -> Iterator[tuple[str, object]]:
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
