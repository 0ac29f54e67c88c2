"""The state of an optimizer: its content in copies, and its checks before a kernel uses it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from famx.notation import UserError
from famx.validate import check_number

Group = dict[str, Any]
StateDict = dict[str, Any]
# returns the initial state of a parameter of a group
Init = Callable[[Tensor, Group], dict[str, Tensor]]
Layout = tuple[torch.Size, torch.dtype]

SHARED = "famx"
"""The key of the first group under which a state_dict holds what all parameters share.

`torch.distributed.checkpoint` saves the groups and the state of each parameter, and nothing else.
"""


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


def all_params(groups: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Returns the parameters of all groups, or their keys in a state_dict, in order."""
    return [p for group in groups for p in group["params"]]


# parameters that change after the first step


def check_layouts(
    optimizer: torch.optim.Optimizer, layouts: Sequence[Layout], params: Sequence[Tensor]
) -> Sequence[Layout]:
    """Refuses parameters whose shape or dtype has changed since their state was made.

    Args:
        layouts: shape and dtype of each parameter in earlier steps; empty in the first step.

    Returns:
        The shape and dtype of each parameter now.

    Raises:
        UserError: a parameter has another shape or dtype than its state or its gradient.
    """
    current = [(p.shape, p.dtype) for p in params]
    # the most frequent case, without a loop in Python over what has changed
    if current == layouts:
        return layouts
    for i, p in enumerate(params):
        is_new = i >= len(layouts) or not optimizer.state.get(p)
        if not is_new and layouts[i] != current[i]:
            raise UserError(
                f"a parameter had {_describe(*layouts[i])} when {type(optimizer).__name__} took "
                f"its first step and now has {_describe(*current[i])}: build a new optimizer"
            )
        if p.grad is not None and p.grad.shape != p.shape:
            raise UserError(
                f"a parameter of shape {tuple(p.shape)} has a gradient of shape "
                f"{tuple(p.grad.shape)}: compute the gradient after the last change of its shape"
            )
    return current


def _describe(shape: Sequence[int], dtype: torch.dtype) -> str:
    return f"the shape {tuple(shape)} and the dtype {dtype}"


# what all parameters share


def with_shared(state_dict: StateDict, shared: Mapping[str, Any], key: str = SHARED) -> StateDict:
    """Returns a state_dict whose first group holds what all parameters share."""
    first, *groups = state_dict["param_groups"]
    return {**state_dict, "param_groups": [{**first, key: dict(shared)}, *groups]}


def split_shared(
    state_dict: Mapping[str, Any], name: str, key: str = SHARED
) -> tuple[StateDict, dict[str, Any]]:
    """Returns the state_dict without what all parameters share, and that, empty if it has none.

    Raises:
        UserError: it is no state_dict of an optimizer.
    """
    groups = state_dict.get("param_groups")
    is_state_dict = isinstance(groups, list) and isinstance(state_dict.get("state"), Mapping)
    if not groups or not is_state_dict or not all("params" in group for group in groups):
        raise UserError(f"the state does not fit this {name}: it is no state_dict of an optimizer")
    shared: dict[str, Any] = {}
    rest = []
    for group in groups:
        shared = group.get(key, shared)
        rest.append({option: value for option, value in group.items() if option != key})
    return {**state_dict, "param_groups": rest}, shared


# the names of parameters


def match_names(optimizer: torch.optim.Optimizer, state_dict: StateDict) -> StateDict:
    """Returns the state_dict with the order of this optimizer's groups and parameters.

    It is unchanged where names are not known on both sides.

    Raises:
        UserError: a name is missing on one side, or the groups consist of other parameters.
    """
    groups = optimizer.param_groups
    saved_groups = state_dict["param_groups"]
    if not all("param_names" in group for group in [*groups, *saved_groups]):
        return state_dict
    # group and key of each saved parameter
    saved: dict[str, tuple[int, Any]] = {}
    for i, group in enumerate(saved_groups):
        for name, key in zip(group["param_names"], group["params"], strict=True):
            saved[name] = (i, key)
    names = [name for group in groups for name in group["param_names"]]
    for name in [*names, *saved]:
        if name not in saved or name not in names:
            has, lacks = ("state", "optimizer") if name in saved else ("optimizer", "state")
            raise UserError(f"the {has} has a parameter {name}, which the {lacks} does not have")
    # the saved group of each group
    ordered = []
    for position, group in enumerate(groups):
        indices = {saved[name][0] for name in group["param_names"]}
        # a group without parameters is matched by its position
        if not group["params"] and position < len(saved_groups):
            indices = {position}
        source = saved_groups[indices.pop()] if len(indices) == 1 else None
        if source is None or len(source["params"]) != len(group["params"]):
            raise UserError(
                f"the state has no group of the parameters {', '.join(group['param_names'][:3])}"
                f"{', ...' if len(group['params']) > 3 else ''}: build the optimizer with the "
                "groups that were saved"
            )
        keys = [saved[name][1] for name in group["param_names"]]
        ordered.append({**source, "params": keys, "param_names": group["param_names"]})
    return {**state_dict, "param_groups": ordered}


def rows_of(ordered: Mapping[str, Any], saved: Mapping[str, Any]) -> list[int]:
    """Returns the position in a saved state_dict of each parameter of the ordered one."""
    saved_keys = all_params(saved["param_groups"])
    position = {key: i for i, key in enumerate(saved_keys)}
    return [position[key] for key in all_params(ordered["param_groups"])]


# checks of a state_dict


def check_state(
    optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any], init: Init
) -> None:
    """Checks groups, names, shapes, dtypes and values of a state before it is loaded.

    Args:
        state_dict: in the order of this optimizer's parameters.

    Raises:
        UserError: something differs from what `init` returns, or is not finite.
    """
    name = type(optimizer).__name__
    saved_groups = state_dict["param_groups"]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    saved_sizes = [len(group["params"]) for group in saved_groups]
    if sizes != saved_sizes:
        raise UserError(
            f"the state has groups of {saved_sizes} parameters, this {name} has {sizes}"
        )
    for group, saved_group in zip(optimizer.param_groups, saved_groups, strict=True):
        # options, without what a scheduler or the user has added to this optimizer's groups
        for option in optimizer.defaults:
            if option not in saved_group:
                raise UserError(f"the state has no {option}, which this {name} needs")
            check_number(option, saved_group[option])
        for p, key in zip(group["params"], saved_group["params"], strict=True):
            saved = state_dict["state"].get(key)
            # a parameter that has never had a gradient
            if not saved:
                continue
            check_param_state(f"{name}'s state of parameter {key}", saved, init(p, saved_group))


def check_param_state(label: str, saved: Mapping[str, Any], expected: Mapping[str, Tensor]) -> None:
    """Checks the state of one parameter against its initial state, see `check_tensor`.

    Raises:
        UserError: a name is missing or unknown, or a tensor does not fit.
    """
    if saved.keys() != expected.keys():
        raise UserError(f"{label} has {sorted(saved)}, expected are {sorted(expected)}")
    for key, value in expected.items():
        check_tensor(f"{label}: {key}", saved[key], value)


def check_tensor(label: str, saved: object, expected: Tensor) -> None:
    """Checks that a saved value is a finite tensor of the shape and kind of dtype of another.

    Raises:
        UserError: it is not.
    """
    if not isinstance(saved, Tensor):
        raise UserError(f"{label} is a {type(saved).__name__}, expected is a tensor")
    if saved.shape != expected.shape:
        raise UserError(
            f"{label} has the shape {tuple(saved.shape)}, expected is {tuple(expected.shape)}"
        )
    if saved.is_floating_point() != expected.is_floating_point() or saved.is_complex():
        raise UserError(f"{label} has the dtype {saved.dtype}, expected is {expected.dtype}")
    if not saved.is_meta and saved.is_floating_point() and not saved.isfinite().all():
        raise UserError(f"{label} is not finite")


def keep_dtypes(
    optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any], init: Init
) -> None:
    """Gives a loaded state, which torch has cast to the dtypes of the parameters, those of `init`.

    Step counts and other 0-d tensors move to the device that `init` chooses.
    """
    keys = all_params(state_dict["param_groups"])
    groups = [group for group in optimizer.param_groups for _ in group["params"]]
    params = all_params(optimizer.param_groups)
    for key, p, group in zip(keys, params, groups, strict=True):
        saved = state_dict["state"].get(key)
        initial = init(p, group) if saved else {}
        for name, value in initial.items():
            loaded = optimizer.state[p][name]
            device = loaded.device if value.ndim else value.device
            # copied from the saved value, since the cast one has lost digits
            if loaded.dtype is not value.dtype or loaded.device != device:
                optimizer.state[p][name] = saved[name].to(device, value.dtype, copy=True)
