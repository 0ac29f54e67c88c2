"""What famx's own optimizers and those that wrap torch's share: what they save, take back and refuse."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from famx.notation import UserError


def whole(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All that it holds, to copy or pickle it with: torch's optimizers name but their groups and state.

    Left out are hooks, and what a scheduler has put around `step`.
    """
    return {
        name: value
        for name, value in vars(optimizer).items()
        if name != "step" and not name.startswith("_")
    }


def captured() -> bool:
    """Whether a CUDA graph is being captured."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def refuse_complex(params: Sequence[Tensor], name: str) -> None:
    for p in params:
        if not p.is_floating_point():
            raise ValueError(
                f"a parameter is {p.dtype}: {name} turns real floating-point ones only"
            )


def keep_dtypes(
    optimizer: torch.optim.Optimizer,
    state_dict: Mapping[str, Any],
    init: Callable[[Tensor], dict[str, Tensor]] = lambda p: {},
) -> None:
    """Takes the state just loaded once more, as torch casts all of it to the parameters' dtypes.

    What `init` names has its dtype; of the rest, 0-d tensors, which count or multiply up, keep theirs.
    """
    places = [place for group in state_dict["param_groups"] for place in group["params"]]
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for place, p in zip(places, params, strict=True):
        usual = init(p)
        for name, value in state_dict["state"].get(place, {}).items():
            if isinstance(value, Tensor) and (name in usual or value.ndim == 0):
                dtype = usual.get(name, value).dtype
                if optimizer.state[p][name].dtype is not dtype:
                    optimizer.state[p][name] = value.to(p.device, dtype, copy=True)


def dense(param: Tensor) -> Tensor | None:
    """The gradient, dense.

    Raises:
        UserError: it is sparse.
    """
    gradient = param.grad
    if gradient is not None and gradient.layout is not torch.strided:
        raise UserError(
            f"a gradient is {gradient.layout}, this takes dense ones: build the layer with sparse=False"
        )
    return gradient
