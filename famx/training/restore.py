"""Restores a trainer from a checkpoint, whose content is checked before it is used."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from famx.notation import UserError
from famx.seeding import set_rng_state
from famx.training import checkpoint
from famx.training.hooks import Interval
from famx.training.run_dir import RunDir
from famx.training.tree import MALFORMED, require_like, restoring

if TYPE_CHECKING:
    from famx.training.trainer import Trainer

# values whose structure changes during a run
CHANGING = ("latest", "rng", "total_steps", "eval_interval")


def require_optimizer(run_dir: RunDir) -> None:
    """Checks that a run can go on: an exported one has weights alone.

    Raises:
        UserError: no checkpoint has the state of an optimizer.
    """
    for folder in checkpoint.all_folders(run_dir.require_checkpoints()):
        try:
            names = json.loads((folder / "state.json").read_text()).keys()
        except (OSError, *MALFORMED):
            # a damaged checkpoint, which is reported where it is loaded
            return
        if "optimizer" in names:
            return
        raise UserError(
            f"{run_dir} has weights without the state of an optimizer, as an exported run: a new "
            f"run starts from them by init_from={run_dir}"
        )


def restore(trainer: "Trainer", saved: Mapping[str, Any], trust_edits: bool) -> None:
    """Restores the model, the optimizer, the hooks and the trainer's own state.

    Args:
        trust_edits: whether options of the optimizer replace those of the checkpoint.

    Raises:
        UserError: names, shapes, dtypes or types differ from those of this run; the message names
            the first difference.
    """
    where = f"the checkpoint of step {saved['step']}"
    template = trainer.state_dict()
    for name in ("model", "optimizer", "averaged", "trainer"):
        if (name in template) is not (name in saved):
            state = "no" if name in template else "a"
            raise UserError(f"{where} has {state} part {name}")
    # model and optimizer
    for name in ("model", "averaged"):
        if name in template:
            require_like(saved[name], template[name], f"{where}: {name}")
    with restoring(f"{where}: its model"):
        trainer.model.load_state_dict(saved["model"])
    if trainer.averaged:
        with restoring(f"{where}: its averaged model"):
            trainer.averaged.load_state_dict(saved["averaged"])
    _restore_optimizer(trainer.optimizer, saved["optimizer"], where, trust_edits)
    # hooks
    for hook in trainer.hooks:
        if hook.state_name is not None and hook.state_name in saved:
            with restoring(f"{where}: its {hook.state_name}"):
                hook.load_state_dict(saved[hook.state_name])
    _restore_loop(trainer, saved, template["trainer"], where)


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, saved: Any, where: str, trust_edits: bool
) -> None:
    """Restores an optimizer whose groups have the same options."""
    options = optimizer.state_dict()["param_groups"]
    with restoring(f"{where}: its optimizer"):
        if not trust_edits:
            require_like(saved["param_groups"], options, "param_groups")
        optimizer.load_state_dict(saved)
    if not trust_edits:
        return
    # options of an edited config, without the numbers of the parameters
    for group, edited in zip(optimizer.param_groups, options, strict=True):
        group.update({key: value for key, value in edited.items() if key != "params"})


def _restore_loop(
    trainer: "Trainer", saved: Mapping[str, Any], template: Mapping[str, Any], where: str
) -> None:
    """Restores the state of the training loop and of the random generators."""
    state = saved["trainer"]
    if not isinstance(state, dict) or state.keys() != template.keys():
        raise UserError(f"{where}: trainer has other values than {', '.join(template)}")
    for name, value in template.items():
        if name not in CHANGING:
            require_like(state[name], value, f"{where}: trainer.{name}")
    for name in ("total_steps", "eval_interval"):
        if state[name] is not None and (type(state[name]) is not int or state[name] < 1):
            raise UserError(f"{where}: trainer.{name}={state[name]} must be at least 1")
    for name in ("epoch", "position", "seconds", "evaluation_seconds"):
        if not 0 <= state[name] < 2**63:
            raise UserError(f"{where}: trainer.{name}={state[name]} must be at least 0")
    latest = state["latest"]
    if not isinstance(latest, dict) or not all(type(x) in (int, float) for x in latest.values()):
        raise UserError(f"{where}: trainer.latest must hold numbers")
    # all values are as expected
    with restoring(f"{where}: its random generators"):
        set_rng_state(state["rng"])
    trainer.step = saved["step"]
    for name in template.keys() - {"rng", "interval"}:
        value = state[name]
        on_device = value.to(trainer.device) if isinstance(value, torch.Tensor) else value
        setattr(trainer, name, on_device)
    trainer.interval = Interval(**state["interval"])
    _set_length(trainer)


def _set_length(trainer: "Trainer") -> None:
    """Sets the number of steps, which `max_steps` of the config may have changed.

    Raises:
        UserError: more steps are already trained.
    """
    max_steps = trainer.config.max_steps
    planned = trainer.total_steps
    has_plan = trainer.time_limit is not None and trainer.eval_interval is not None
    if has_plan and planned is not None and trainer.step < planned:
        trainer.total_steps = min(planned, max_steps or planned)
    else:
        trainer.total_steps = max_steps or planned
    if trainer.total_steps is not None and trainer.total_steps < trainer.step:
        raise UserError(
            f"trainer.max_steps={trainer.total_steps} is less than the {trainer.step} steps "
            "that are already trained"
        )
