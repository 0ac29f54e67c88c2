"""The state of an optimizer: its content in copies and pickles, its dtypes after loading."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def getstate(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """`__getstate__` for `copy` and `pickle`: all public attributes.

    torch's own returns only `defaults`, `param_groups` and `state`. Hooks (private attributes) and
    the wrapper that a scheduler puts around `step` are not part of the state.
    """
    state = {}
    for name, value in vars(optimizer).items():
        if name != "step" and not name.startswith("_"):
            state[name] = value
    return state


def keep_dtypes(
    optimizer: torch.optim.Optimizer,
    state_dict: Mapping[str, Any],
    init: Callable[[Tensor], dict[str, Tensor]] = lambda param: {},
) -> None:
    """Restores the dtypes of a loaded state, which torch has cast to those of the parameters.

    Tensors that `init` returns get the dtypes that it gives them. Other 0-d tensors, such as step
    counts and products, get the dtypes that were saved.
    """
    # parameters are numbered in the order of the groups
    indices = [i for group in state_dict["param_groups"] for i in group["params"]]
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for index, p in zip(indices, params, strict=True):
        initial = init(p)
        for name, saved in state_dict["state"].get(index, {}).items():
            if not isinstance(saved, Tensor) or (name not in initial and saved.ndim > 0):
                continue
            # copied from the saved value, since the cast one has lost digits
            dtype = initial.get(name, saved).dtype
            if optimizer.state[p][name].dtype is not dtype:
                optimizer.state[p][name] = saved.to(p.device, dtype, copy=True)
