"""Resolves a composed config: defaults, sampled layers, absolute paths."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from famx import registry
from famx.experiment.search import sample_layers
from famx.model import layer_choices
from famx.monitoring.optimizer_probe import ProbeLevel
from famx.notation import UserError
from famx.registry import get
from famx.validate import check_number


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with all that is left open decided: `usual` frontends and data are what the task reads, layers drawn.

    `model.layers` becomes complete, and builds the same model wherever it is given; what it was drawn from moves to
    `model.drawn`. The optimizer's `usual` momentum and spectrum stay, since an optimizer may wear none. Paths become
    absolute, so that the run can be used from any folder.

    Raises:
        UserError: a size or the seed is no whole number in its range.
    """
    sizes = {
        f"model.{key}": (config["model"][key], 1) for key in ("d_model", "n_heads", "n_layers")
    }
    for key, (value, least) in (sizes | {"seed": (config["seed"], 0)}).items():
        if type(value) is not int or not least <= value < 2**63:
            raise UserError(f"{key}={value} must be a whole number of {least} or more, below 2**63")
    if not re.fullmatch(r"[^/\0]+", str(config["name"])):
        raise UserError(f"name={config['name']} must be the name of one folder, without a /")
    check_number("kinds", config["kinds"])
    task = get("task", config["task"]["name"])
    worn = {
        room: {"name": name} for room, name in task.usual.items() if config[room]["name"] == "usual"
    }
    model = dict(config["model"])
    if model.get("draw"):
        del model["draw"]
        model |= sample_layers(config)
    elif model.get("layers") is not None:
        model["layers"] = layer_choices(config)
    if model.get("layers"):
        model["n_layers"] = len(model["layers"])
    settled = dict(config) | worn | {"model": model}
    if config["init_from"] and Path(config["init_from"]).exists():
        settled["init_from"] = str(Path(config["init_from"]).resolve())
    files = {key: Path(settled["data"].get(key) or "").expanduser() for key in ("root", "path")}
    there = {
        key: str(path.resolve())
        for key, path in files.items()
        if settled["data"].get(key) and path.exists()
    }
    return settled | {"data": settled["data"] | there}


def check_modalities(config: Mapping[str, Any]) -> None:
    """Refuses data or a frontend of text where the task is one of speech, or the other way round."""
    task = config["task"]["name"]
    unit = get("task", task).unit
    for room in ("data", "frontend"):
        of = {name: getattr(get(room, name), "unit", unit) for name in registry.names(room)}
        name = config[room]["name"]
        if of.get(name, unit) != unit:
            fitting = ", ".join(other for other in of if of[other] == unit)
            raise UserError(
                f"{room}={name} is of {of[name]} and task={task} of {unit}; {room} may be {fitting}"
            )


def probe_level(value: Any) -> ProbeLevel:
    """The microscope's setting.

    Raises:
        UserError: there is no such setting.
    """
    watch = {False: "off"}.get(value, value)  # YAML reads a bare off as false
    if watch not in get_args(ProbeLevel):
        raise UserError(
            f"watch={value}: no such setting{registry.suggest(str(value), get_args(ProbeLevel))}"
        )
    return watch
