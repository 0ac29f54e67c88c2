"""Resolves a composed config: default parts of the task, sampled layers, absolute paths."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, get_args, runtime_checkable

from famx import registry
from famx.config.schema import complete_choice
from famx.experiment.search import sample_layers
from famx.frontend.base import Frontend
from famx.model import decoder_layers, layer_choices
from famx.monitoring.optimizer_probe import ProbeLevel
from famx.notation import Modality, UserError, suggest
from famx.registry import get
from famx.training.loader_config import LoaderConfig
from famx.validate import check_folder_name, check_number

Config = Mapping[str, Any]

# sections of a config with options that are paths
SECTIONS_WITH_PATHS = ("data", "decode", "frontend", "loader")
# sizes beyond which no model is meant; famx/experiment/build.py compares the memory
MAX_SIZES = {"d_model": 2**20, "n_heads": 2**20, "n_layers": 2000}


@runtime_checkable
class HasModality(Protocol):
    """A data set or frontend that is for speech, for text or for images alone."""

    modality: Modality


@runtime_checkable
class HasOutput(Protocol):
    """A decoder or task of one kind of model outputs."""

    output: str


@runtime_checkable
class TrainsOutputs(Protocol):
    """A task whose options may leave an output of its model untrained."""

    @classmethod
    def untrained_outputs(cls, options: Config) -> dict[str, str]: ...


@runtime_checkable
class DecodesOutputs(Protocol):
    """A decoder whose options decide which outputs it decodes."""

    @classmethod
    def decoded_outputs(cls, options: Config) -> tuple[str, ...]: ...


@runtime_checkable
class HasPaths(Protocol):
    """A data set, decoder, frontend or section with options that are paths."""

    path_options: tuple[str, ...]


@runtime_checkable
class CompletesOptions(Protocol):
    """A frontend with options that its files decide, and that a run stores in their place."""

    @classmethod
    def complete(cls, options: Config) -> dict[str, Any]: ...


def resolve(config: Config) -> dict[str, Any]:
    """Returns the config with every open choice made, so that it builds the same run anywhere.

    `default` frontends, data sets and decoders become those of the task; `model.layers` becomes
    complete, whether listed or sampled (`model.drawn` then records the search space); paths become
    absolute; the architecture of a pretrained frontend is that of its folder. The `default`
    momentum and spectrum stay, since an optimizer may have none.

    Raises:
        UserError: a size, the seed or the name is not allowed.
    """
    _check_numbers(config)
    resolved = dict(config)
    # parts for which the task has a default
    task = get("task", config["task"]["name"])
    for room, name in task.default_parts.items():
        if config[room]["name"] == "default":
            resolved[room] = {"name": name}
    # a task of any data leaves the frontend to the modality of its data
    data = get("data", resolved["data"]["name"])
    if config["frontend"]["name"] == "default" and isinstance(data, HasModality):
        resolved["frontend"] = {"name": task.default_frontend(data.modality)}
    resolved["optim"] = _resolve_optimizer(config)
    # layers
    model = dict(config["model"])
    if model.get("draw"):
        del model["draw"]
        model |= sample_layers(config)
    elif model.get("layers") is not None:
        model["layers"] = layer_choices(config)
    if model.get("layers"):
        model["n_layers"] = len(model["layers"])
    _resolve_decoder(model, config["task"]["name"])
    resolved["model"] = model
    # options of a sweep are not those of its runs
    resolved.pop("sweep", None)
    # paths
    if config["init_from"]:
        resolved["init_from"] = _absolute(config["init_from"])
    for section in SECTIONS_WITH_PATHS:
        resolved[section] = with_absolute_paths(section, resolved[section])
    # what the files of a frontend decide
    frontend = get("frontend", resolved["frontend"]["name"])
    if isinstance(frontend, CompletesOptions):
        resolved["frontend"] = frontend.complete(resolved["frontend"])
    return resolved


def _check_numbers(config: Config) -> None:
    _check_integer("seed", config["seed"], 0, 2**63 - 1)
    for key, maximum in MAX_SIZES.items():
        _check_integer(f"model.{key}", config["model"][key], 1, maximum)
    check_folder_name(config["name"])
    check_number("param_groups", config["param_groups"])


def _check_integer(key: str, value: object, minimum: int, maximum: int) -> None:
    # `isinstance` would accept booleans
    if type(value) is not int or not minimum <= value <= maximum:
        raise UserError(
            f"{key}={value} must be an integer of at least {minimum} and at most {maximum:,}"
        )


def _resolve_decoder(model: dict[str, Any], task_name: str) -> None:
    """Sets the number of pairs of layers of the decoder, if the task has one."""
    if get("task", task_name).decoder_kind == "attention":
        model["decoder_layers"] = decoder_layers({"model": model})
        _check_integer("model.decoder_layers", model["decoder_layers"], 1, MAX_SIZES["n_layers"])
        return
    # without a decoder, its size is no option of the run
    n_pairs = model.pop("decoder_layers", None)
    if n_pairs is not None:
        raise UserError(
            f"model.decoder_layers={n_pairs} has no effect with task={task_name}, whose model has "
            "no decoder with attention; remove it"
        )


def _resolve_optimizer(config: Config) -> dict[str, Any]:
    """Replaces `adamw` with a momentum rule by `fam_adamw`, also as the base of a wrapper."""
    optim = dict(config["optim"])
    if config["momentum"]["name"] == config["spectrum"]["name"] == "default":
        return optim
    for key in ("name", "base"):
        if optim.get(key) == "adamw":
            optim[key] = "fam_adamw"
    return optim


def with_absolute_paths(section: str, values: Config) -> dict[str, Any]:
    """Returns a section of a config with absolute paths of existing files and folders."""
    resolved = dict(values)
    for option in path_options(section, values):
        if values.get(option):
            resolved[option] = _absolute(values[option])
    return resolved


def path_options(section: str, values: Config) -> tuple[str, ...]:
    """Returns the options of a section of a config that are paths.

    Args:
        section: one of SECTIONS_WITH_PATHS.
    """
    part = LoaderConfig if section == "loader" else get(section, values["name"])
    return part.path_options if isinstance(part, HasPaths) else ()


def _absolute(path: str) -> str:
    # unlike Path.expanduser, accepts a user without a home
    expanded = Path(os.path.expanduser(path))
    return str(expanded.resolve()) if expanded.exists() else path


def check_parts_fit(config: Config) -> None:
    """Checks that modalities and layers fit the task, and that the decoder fits its outputs.

    Raises:
        UserError: a part does not fit; the message names parts that do.
    """
    # modality of the data and the frontend, the same one for a task of any modality
    task_name = config["task"]["name"]
    task = get("task", task_name)
    data = get("data", config["data"]["name"])
    modality = task.modality
    reason = f"task={task_name}"
    if modality is None and isinstance(data, HasModality):
        modality = data.modality
        reason = f"data={config['data']['name']}"
    for room in ("data", "frontend"):
        part = get(room, config[room]["name"])
        if not _fits(part, modality):
            fitting = [name for name in registry.names(room) if _fits(get(room, name), modality)]
            raise UserError(
                f"{room}={config[room]['name']} is for {part.modality.value} and {reason} "
                f"for {modality.value}; {room} may be {', '.join(fitting)}"
            )
    frontend = config["frontend"]["name"]
    frontend_part = get("frontend", frontend)
    if task.causal and issubclass(frontend_part, Frontend) and frontend_part.sees_later:
        raise UserError(
            f"frontend={frontend} sees later tokens, which task={task_name} must not; "
            f"frontend=default is {task.default_parts['frontend']}"
        )
    # outputs that the decoder expects
    decoder = get("decode", config["decode"]["name"])
    outputs = (task.output, *task.other_outputs)
    missing = [output for output in _decoded_outputs(config) if output not in outputs]
    if missing:
        remedy = f"decode=default is {task.default_parts['decode']}"
        # a joint decoder, of which the task has one output
        if decoder.output in outputs:
            remedy += ", and decode.ctc_weight=0 decodes text alone"
        raise UserError(
            f"decode={config['decode']['name']} decodes {' and '.join(missing)} and "
            f"task={task_name} gives {' and '.join(outputs)}; {remedy}"
        )
    _check_outputs_are_trained(config)
    _check_training(config)
    # folders of noise and of rooms
    for option in LoaderConfig.path_options:
        if config["loader"].get(option) and modality is not Modality.SPEECH:
            raise UserError(
                f"loader.{option} changes recordings, and data={config['data']['name']} has none; "
                "remove it"
            )


def _check_training(config: Config) -> None:
    """Checks options of a task that depend on those of the loader and the model."""
    # two views of a batch, which differ in their masks alone
    if config["task"].get("consistency") and not LoaderConfig(**config["loader"]).has_masks:
        raise UserError(
            "task.consistency compares two views of a batch with different masks, but "
            "loader.time_masks=0, loader.mel_masks=0 and loader.time_masks_per_second=0 mask "
            "nothing: set one of them, or task.consistency=0"
        )
    # an earlier layer that the task trains
    intermediate_layer = config["task"].get("intermediate_layer", 0)
    n_layers = config["model"]["n_layers"]
    if intermediate_layer >= n_layers:
        raise UserError(
            f"task.intermediate_layer={intermediate_layer} must be below the last of "
            f"model.n_layers={n_layers}, or 0 for none"
        )


def _check_outputs_are_trained(config: Config) -> None:
    """Checks that a decoder uses no output that the loss leaves at its initial weights."""
    # those of another run may be trained
    if config["init_from"]:
        return
    task = get("task", config["task"]["name"])
    untrained: dict[str, str] = {}
    if isinstance(task, TrainsOutputs):
        untrained = task.untrained_outputs(complete_choice("task", config["task"]))
    used = _decoded_outputs(config)
    for output, reason in untrained.items():
        if output in used:
            raise UserError(
                f"decode={config['decode']['name']} decodes the output {output}, which {reason}"
            )


def _decoded_outputs(config: Config) -> tuple[str, ...]:
    """Returns the outputs of a model that the decoder uses; none where it does not say."""
    decoder = get("decode", config["decode"]["name"])
    if isinstance(decoder, DecodesOutputs):
        return decoder.decoded_outputs(complete_choice("decode", config["decode"]))
    return (decoder.output,) if isinstance(decoder, HasOutput) else ()


def _fits(part: type, modality: Modality | None) -> bool:
    return modality is None or not isinstance(part, HasModality) or part.modality is modality


def probe_level(value: object) -> ProbeLevel:
    """Returns the level of the optimizer probe that the config sets.

    Raises:
        UserError: there is no such level.
    """
    if value is False:  # YAML reads a bare off as false
        return "off"
    levels: tuple[ProbeLevel, ...] = get_args(ProbeLevel)
    for level in levels:
        if value == level:
            return level
    raise UserError(f"probe={value}: no such level{suggest(str(value), levels)}")


def is_on(config: Mapping[str, Any], key: str) -> bool:
    """Returns whether a setting is on.

    Raises:
        UserError: it is neither on nor off.
    """
    # YAML reads a bare on and off as booleans
    levels = {"on": True, "off": False, "True": True, "False": False}
    value = str(config[key])
    if value not in levels:
        raise UserError(f"{key}={value}: no such level{suggest(value, ('on', 'off'))}")
    return levels[value]
