"""Guarantees of the state of every optimizer: it is saved, copied and restored exactly."""

import copy
import io

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from famx.contracts import _steps as steps
from famx.contracts import require
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
