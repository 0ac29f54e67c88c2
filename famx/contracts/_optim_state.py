"""Guarantees of the state of every optimizer: it is saved, copied and restored exactly."""

import copy
import io
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from famx.contracts import ContractError, require
from famx.contracts import _steps as steps
from famx.nn.hooks import SkipsNonFinite

# the steps that follow a saved state: rules measure every 8 steps, so at least once in these
RESUMED_STEPS = 13


def state_round_trip(part: type[Optimizer]) -> None:
    """A state_dict that went through a file resumes exactly, in every dtype."""
    for dtype in (torch.float32, torch.bfloat16):
        # an optimizer in the middle of its training
        params = [nn.Parameter(p.detach().to(dtype)) for p in steps.make_parameters()]
        optimizer = steps.build(part, params, lr=0.1)
        gradients = list(steps.random_gradients())
        steps.take_steps(optimizer, params, gradients[:-RESUMED_STEPS])
        # through a file into an optimizer with other settings
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        copies = [nn.Parameter(p.detach().clone()) for p in params]
        resumed = steps.build(part, copies, lr=0.5)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        # the same state, and the same steps from there
        saved = steps.state_tensors(optimizer)
        loaded = steps.state_tensors(resumed)
        require(list(saved) == list(loaded), f"saves {sorted(saved)}, but loads {sorted(loaded)}")
        for path, value in saved.items():
            dtypes = f"{loaded[path].dtype}, it was {value.dtype}"
            require(value.dtype is loaded[path].dtype, f"loads {path} as {dtypes}")
            require(torch.equal(value, loaded[path]), f"loads another {path} than it saved")
        steps.take_steps(optimizer, params, gradients[-RESUMED_STEPS:])
        steps.take_steps(resumed, copies, gradients[-RESUMED_STEPS:])
        for p, q in zip(params, copies, strict=True):
            require(
                torch.equal(p, q),
                f"takes other steps with its loaded state: {dtype}, shape {tuple(p.shape)}",
            )


def copy_takes_the_same_steps(part: type[Optimizer]) -> None:
    """A deep copy of an optimizer and its parameters takes the same steps."""
    params = steps.make_parameters()
    gradients = list(steps.random_gradients(12))
    optimizer = steps.build(part, params, lr=0.1)
    steps.take_steps(optimizer, params, gradients[:6])
    # in one call, so that the copy of the optimizer refers to the copies of the parameters
    copied_optimizer, copied_params = copy.deepcopy((optimizer, params))
    steps.take_steps(optimizer, params, gradients[6:])
    steps.take_steps(copied_optimizer, copied_params, gradients[6:])
    require(steps.all_equal(params, copied_params), "a copy of it takes other steps")


def keeps_plain_state(part: type[Optimizer]) -> None:
    """Its state_dict consists of tensors, numbers and strings."""
    params = steps.make_parameters()
    optimizer = steps.build(part, params, lr=0.1)
    steps.take_steps(optimizer, params, list(steps.random_gradients(3)))
    for path, value in steps.leaves(optimizer.state_dict(), "state_dict"):
        require(
            value is None or isinstance(value, Tensor | bool | int | float | str),
            f"{path} is a {type(value).__name__}: neither a tensor nor a number nor a string",
        )


def refuses_the_state_of_other_parameters(part: type[Optimizer]) -> None:
    """A state of other shapes, names or groups, or one that is not finite, is refused on load."""
    params = steps.make_parameters()
    optimizer = steps.build(part, params, lr=0.1)
    steps.take_steps(optimizer, params, list(steps.random_gradients(3)))
    saved = optimizer.state_dict()
    # the same tensors in another order, fewer of them, and one that has grown
    grown = nn.Parameter(torch.ones(41, 301))
    for other in (params[::-1], params[:-1], [*params[:-1], grown]):
        _require_refusal(part, other, saved, "other parameters")
    # each tensor of the state in turn
    for path, value in steps.state_tensors(optimizer).items():
        if value.is_floating_point():
            damaged = copy.deepcopy(saved)
            _at(damaged, path).view(-1)[-1] = torch.nan
            _require_refusal(part, params, damaged, f"{path} that is not finite")


def _at(state_dict: dict[str, Any], path: str) -> Tensor:
    """Returns the tensor at a path of `_steps.leaves`."""
    for name, value in steps.leaves(state_dict, "state"):
        if name == path and isinstance(value, Tensor):
            return value
    raise KeyError(path)


def _require_refusal(
    part: type[Optimizer], params: list[nn.Parameter], saved: dict[str, Any], cause: str
) -> None:
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    optimizer = steps.build(part, copies, lr=0.1)
    before = steps.copy_state_tensors(optimizer)
    try:
        optimizer.load_state_dict(copy.deepcopy(saved))
    except ValueError:
        after = steps.copy_state_tensors(optimizer)
        same = before.keys() == after.keys()
        same = same and steps.all_equal(list(before.values()), list(after.values()))
        require(same, f"is changed by a refused state of {cause}")
        return
    raise ContractError(f"loads a state of {cause}")


def refuses_a_parameter_that_changes(part: type[Optimizer]) -> None:
    """A parameter of another shape or dtype than in the first step raises an error."""
    for change in (lambda p: torch.cat([p, p]), lambda p: p[:-1].clone(), Tensor.double):
        params = steps.make_parameters()
        optimizer = steps.build(part, params, lr=0.1)
        steps.take_steps(optimizer, params, list(steps.random_gradients(3)))
        changed = params[3]
        changed.grad = None
        changed.data = change(changed.data)
        changed.grad = torch.ones_like(changed)
        try:
            optimizer.step()
        except ValueError:
            continue
        raise ContractError(
            f"steps with a parameter that has become {tuple(changed.shape)}, {changed.dtype}"
        )


def adds_groups_or_refuses_them(part: type[Optimizer]) -> None:
    """After its first steps, `add_param_group` adds parameters that move, or raises an error."""
    params = steps.make_parameters()
    optimizer = steps.build(part, params, lr=0.1)
    steps.take_steps(optimizer, params, list(steps.random_gradients(3)))
    n_groups = len(optimizer.param_groups)
    added = [nn.Parameter(torch.ones(30, 20)), nn.Parameter(torch.ones(9))]
    try:
        optimizer.add_param_group({"params": added})
    except ValueError:
        require(len(optimizer.param_groups) == n_groups, "adds a group that it refuses")
        return
    gradients = [[*row, torch.ones(30, 20), torch.ones(9)] for row in steps.random_gradients(3)]
    steps.take_steps(optimizer, [*params, *added], gradients)
    require(all((p != 1).any() for p in added), "does not move the parameters of an added group")


def matches_names(part: type[Optimizer]) -> None:
    """Named parameters get their own state in any order, or another order is refused."""
    params = steps.make_parameters()
    named = [(f"p{i}", p) for i, p in enumerate(params)]
    optimizer = steps.build(part, named, lr=0.1)
    gradients = list(steps.random_gradients(6))
    steps.take_steps(optimizer, params, gradients[:3])
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    reordered = [(f"p{i}", p) for i, p in enumerate(copies)][::-1]
    resumed = steps.build(part, reordered, lr=0.1)
    # an unlike name is always refused
    renamed = steps.build(part, [(f"q{i}", p) for i, p in enumerate(copies)], lr=0.1)
    try:
        renamed.load_state_dict(optimizer.state_dict())
    except ValueError as error:
        require("a parameter " in str(error), f"refuses a name without it: {error}")
    else:
        raise ContractError("loads a state of parameters with other names")
    try:
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    except ValueError:
        return
    steps.take_steps(optimizer, params, gradients[3:])
    steps.take_steps(resumed, copies, gradients[3:])
    require(steps.all_equal(params, copies), "takes other steps in another order of its names")


class _Parameters(nn.Module):
    """A module with the parameters of the contracts."""

    def __init__(self, params: list[nn.Parameter]):
        super().__init__()
        self.params = nn.ParameterList(params)


def distributed_checkpoint_round_trip(part: type[Optimizer]) -> None:
    """The state dicts of `torch.distributed.checkpoint` resume exactly."""
    params = steps.make_parameters()
    optimizer = steps.build(part, params, lr=0.1)
    gradients = list(steps.random_gradients())
    steps.take_steps(optimizer, params, gradients[:-RESUMED_STEPS])
    saved = copy.deepcopy(get_optimizer_state_dict(_Parameters(params), optimizer))
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    resumed = steps.build(part, copies, lr=0.1)
    set_optimizer_state_dict(_Parameters(copies), resumed, saved)
    steps.take_steps(optimizer, params, gradients[-RESUMED_STEPS:])
    steps.take_steps(resumed, copies, gradients[-RESUMED_STEPS:])
    require(steps.all_equal(params, copies), "takes other steps after its state was distributed")


def non_finite(part: type[Optimizer]) -> None:
    """A step with a gradient that is not finite changes nothing, and is counted in `skipped`."""
    params = steps.make_parameters()
    optimizer = steps.build(part, [{"params": params, "weight_decay": 0.1}], lr=0.1)
    for step, gradients in enumerate(steps.random_gradients()):
        # without state, before momentum rules act, and while they do
        if step in (0, 40, 110):
            # one entry alone, the last of a tensor: the first tensor, one in the middle, the last
            for bad, index in ((float("nan"), 0), (float("inf"), 3), (-float("inf"), 5)):
                corrupted = [g.clone() for g in gradients]
                corrupted[index].view(-1)[-1] = bad
                steps.set_gradients(params, corrupted)
                _require_skipped_step(optimizer, params, f"a gradient that is {bad} at step {step}")
        steps.take_steps(optimizer, params, [gradients])


def _require_skipped_step(optimizer: Optimizer, params: list[nn.Parameter], cause: str) -> None:
    """Requires that the next step changes nothing; state that it creates is zero or a parameter."""
    # everything that a step could change
    params_before = [p.detach().clone() for p in params]
    state_before = steps.copy_state_tensors(optimizer)
    skipped_before = int(optimizer.skipped) if isinstance(optimizer, SkipsNonFinite) else 0
    optimizer.step()
    require(steps.all_equal(params_before, params), f"steps on {cause}")
    # a first step may create state even where it is skipped
    for path, value in steps.copy_state_tensors(optimizer).items():
        if path in state_before:
            same = torch.equal(state_before[path], value)
        else:
            same = not value.any() or any(torch.equal(p, value) for p in params)
        require(same or path.endswith("skipped"), f"{path} changes on {cause}")
    # a part that is no SkipsNonFinite counts nothing, which breaks the contract
    skipped = int(optimizer.skipped) if isinstance(optimizer, SkipsNonFinite) else 0
    count = skipped - skipped_before
    require(count == 1, f"counts {count or 'no'} skipped step in `skipped` on {cause}")
