"""Resolves a composed config: default parts of the task, sampled layers, absolute paths."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, get_args, runtime_checkable

from famx import registry
from famx.config.command import parse_yaml
from famx.config.schema import complete_choice
from famx.config.text_options import is_text_option
from famx.experiment.search import sample_layers
from famx.frontend.base import Frontend
from famx.model import decoder_layers, layer_choices
from famx.monitoring.optimizer_probe import ProbeLevel
from famx.notation import Modality, UserError, suggest
from famx.registry import get
from famx.training.loader_config import LoaderConfig
from famx.training.trainer_config import TrainerConfig
from famx.validate import check_folder_name, check_number

Config = Mapping[str, Any]

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
    """A data set, decoder or frontend with hyperparameters that are paths."""

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
    for room in PATH_ROOMS:
        resolved[room] = _with_absolute_paths(room, resolved[room])
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


def _with_absolute_paths(room: str, choice: Config) -> dict[str, Any]:
    """Returns the config of a part with absolute paths of existing files and folders."""
    resolved = dict(choice)
    for option in path_options(room, choice["name"]):
        if choice.get(option):
            resolved[option] = _absolute(choice[option])
    return resolved


def path_options(room: str, name: str) -> tuple[str, ...]:
    """Returns the hyperparameters of a part that are paths."""
    part = get(room, name)
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
    # output that the decoder expects
    decoder = get("decode", config["decode"]["name"])
    outputs = (task.output, *task.other_outputs)
    if isinstance(decoder, HasOutput) and decoder.output not in outputs:
        raise UserError(
            f"decode={config['decode']['name']} decodes {decoder.output} and task={task_name} "
            f"gives {' and '.join(outputs)}; decode=default is {task.default_parts['decode']}"
        )
    _check_outputs_are_trained(config)
    _check_training(config)


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
    decoder = get("decode", config["decode"]["name"])
    used: tuple[str, ...] = (decoder.output,) if isinstance(decoder, HasOutput) else ()
    if isinstance(decoder, DecodesOutputs):
        used = decoder.decoded_outputs(complete_choice("decode", config["decode"]))
    for output, reason in untrained.items():
        if output in used:
            raise UserError(
                f"decode={config['decode']['name']} decodes the output {output}, which {reason}"
            )


OVERRIDABLE = ("trainer.device", "trainer.threads")  # options of a trained run
OVERRIDABLE_ROOMS = ("data", "decode")
PATH_ROOMS = (*OVERRIDABLE_ROOMS, "frontend")  # rooms of parts with paths
MAX_LABEL = 100  # characters of a label in the name of a file


def override_decoding(config: Config, words: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Applies words such as `decode.beam=8` or `data.root=FOLDER` to a trained run's config.

    The device is selected again unless a word sets it.

    Returns:
        The config, and a label of what changed for file names, empty if that is nothing.

    Raises:
        UserError: a word sets another option, or one that does not exist.
    """
    # another machine may have another device
    trainer = dict(config["trainer"]) | {"device": "auto", "threads": None}
    choices = {room: dict(config[room]) for room in OVERRIDABLE_ROOMS}
    options: dict[str, dict[str, Any]] = {room: {} for room in OVERRIDABLE_ROOMS}
    for word in words:
        key, equals, text = word.partition("=")
        room, _, option = key.partition(".")
        if not equals or (key not in OVERRIDABLE and room not in OVERRIDABLE_ROOMS):
            raise UserError(
                f"{word} cannot be set for a trained run; these can: decode=NAME, "
                "decode.KEY=VALUE, data=NAME, data.KEY=VALUE, trainer.device=NAME, "
                "trainer.threads=N"
            )
        if key == room:
            choices[room] = {"name": text}
        elif room in OVERRIDABLE_ROOMS:
            # a path stays as it is typed
            is_text = is_text_option(key) and text != "null"
            options[room][option] = text if is_text else parse_yaml(key, text)
        else:
            trainer[option] = parse_yaml(key, text)
    # complete choices; only those that differ have a label
    changed: dict[str, Any] = {}
    labels = []
    for room, choice in choices.items():
        # a default, as training would have resolved it
        if choice["name"] == "default":
            choice["name"] = get("task", config["task"]["name"]).default_parts[room]
        changed[room] = complete_choice(room, choice | options[room])
        changed[room] = _with_absolute_paths(room, changed[room])
        if changed[room] != complete_choice(room, config[room]):
            labels.append(_label(changed[room]["name"], options[room]))
    trainer = vars(TrainerConfig(**trainer))
    return dict(config) | changed | {"trainer": trainer}, ".".join(reversed(labels))


def _label(name: str, options: Config) -> str:
    """Returns the name of a part and its options as part of a file's name."""
    label = ",".join([name, *(f"{key}={value}" for key, value in options.items())])
    if re.fullmatch(r"[\w.,=+-]*", label) and len(label) <= MAX_LABEL:
        return label
    # a digest tells apart what looks the same without its slashes or its beginning
    digest = hashlib.sha256(label.encode(errors="surrogateescape")).hexdigest()[:8]
    return re.sub(r"[^\w.,=+-]+", "_", label)[:MAX_LABEL] + f"-{digest}"


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
