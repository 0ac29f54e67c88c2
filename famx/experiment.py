"""From a composed config to a trained and evaluated run: the one place where everything is put together."""

import contextlib
import hashlib
import inspect
import json
import logging
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
import yaml
from rich.console import Console, Group
from torch import distributed, nn

from famx import checkpoint, disk, machine, registry, summary
from famx.config import command
from famx.data.base import SAMPLE_RATE
from famx.data.loader import Loader
from famx.draw import drawn, table
from famx.folder import checkpoints, load_weights, refuse_taken, stored_tokenizer, taken
from famx.microscope import Microscope, Watch
from famx.model import build_model, layer_choices
from famx.notation import UserError
from famx.optim import AGC, parameter_groups
from famx.optim.groups import group_settings
from famx.registry import build, get
from famx.settings import LoaderConfig, TrainerConfig, hold
from famx.task.base import Evaluation, evaluate
from famx.trainer import Trainer

__all__ = ["build_model", "build_optimizer", "run", "settle"]

log = logging.getLogger(__name__)


def settle(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with all that is left open decided: `usual` frontends and data are what the task reads, layers drawn.

    `model.layers` becomes complete, and builds the same model wherever it is given; what it was drawn from moves to
    `model.drawn`. The optimizer's `usual` momentum and spectrum stay, since an optimizer may wear none. Paths become
    absolute, so that the run can be used from any folder.

    Raises:
        UserError: a size or the seed is no whole number in its range.
    """
    sizes = {f"model.{key}": (config["model"][key], 1) for key in ("d_model", "n_heads", "n_layers")}
    for key, (value, least) in (sizes | {"seed": (config["seed"], 0)}).items():
        if type(value) is not int or not least <= value < 2**63:
            raise UserError(f"{key}={value} must be a whole number of {least} or more, below 2**63")
    if not re.fullmatch(r"[^/\0]+", str(config["name"])):
        raise UserError(f"name={config['name']} must be the name of one folder, without a /")
    hold("kinds", config["kinds"])
    task = get("task", config["task"]["name"])
    worn = {room: {"name": name} for room, name in task.usual.items() if config[room]["name"] == "usual"}
    model = dict(config["model"])
    if model.get("draw"):
        del model["draw"]
        model |= drawn(config)
    elif model.get("layers") is not None:
        model["layers"] = layer_choices(config)
    if model.get("layers"):
        model["n_layers"] = len(model["layers"])
    settled = dict(config) | worn | {"model": model}
    if config["init_from"] and Path(config["init_from"]).exists():
        settled["init_from"] = str(Path(config["init_from"]).resolve())
    files = {key: Path(settled["data"].get(key) or "").expanduser() for key in ("root", "path")}
    there = {key: str(path.resolve()) for key, path in files.items() if settled["data"].get(key) and path.exists()}
    return settled | {"data": settled["data"] | there}


def build_optimizer(
    config: Mapping[str, Any],
    params: Any,
    momentum: Mapping[str, Any] | None = None,
    spectrum: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """Builds the optimizer that `config["name"]` names over parameters or groups of them.

    Args:
        momentum, spectrum: the rule and the measure that it wears; None (or one named `usual`): its own.

    Raises:
        UserError: an unknown part or key, or a rule for an optimizer that wears none.
    """
    given = {"momentum": momentum, "spectrum": spectrum}
    given = {room: choice for room, choice in given.items() if choice and choice["name"] != "usual"}
    asked = inspect.signature(get("optim", config["name"])).parameters
    for room, choice in given.items():
        if room not in asked:
            raise UserError(f"optim={config['name']} wears no {room}, so {room}={choice['name']} would change nothing")
    optimizer = build("optim", config, params=params, **{room: partial(build, room, c) for room, c in given.items()})
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"optim={config['name']} is a {type(optimizer).__name__}, which is no torch.optim.Optimizer")
    return optimizer


def run(config: Mapping[str, Any], folder: Path, resume: bool = False) -> dict[str, Any]:
    """Trains what the config describes in `folder`, then scores every split that it was not trained on.

    Returns:
        The last metrics by tag, with `stopped_by` among them if a signal ended the run.

    Raises:
        UserError: a mistake in the config, the data, or the run to go on from.
    """
    config, settings = settle(config), TrainerConfig(**config["trainer"])
    _refuse_misfits(config)
    watch, device = _watch(config["watch"]), machine.device_of(settings)
    first = machine.join(device)
    console = Console(quiet=not first)
    if first and not resume:
        refuse_taken(folder)
    train = data(config, "train")
    units = {key: value for key, value in config["task"].items() if key == "units"}
    tokenizer = stored_tokenizer(folder) if resume else train.build_tokenizer(**units)
    loaders = {s: batches(config, train if s == "train" else data(config, s), tokenizer) for s in train.splits}
    task = build("task", config["task"], tokenizer=tokenizer)
    model = _model(config, tokenizer.get_vocab_size(), resume).to(device)
    for loader in loaders.values():
        _refuse_unlearnable(loader.dataset, task, model)
    trainer = _trainer(config, settings, model, task, loaders, folder, device, watch if first else "off")
    layers = [table(config)] if config["model"].get("layers") else []
    overview = Group(*layers, summary.summary(config, model, train, device))
    with taken(folder, resume) if first else contextlib.nullcontext():
        if resume:
            _restore(trainer, first)
        if first:
            _begin(config, folder, tokenizer)
            console.print(overview, summary.groups(trainer.optimizer, folder))
        last = trainer.fit()
        if trainer.stopped_by:
            to_go_on = f"stopped at step {trainer.step} and saved; to go on:\n  " + command("train", f"resume={folder}")
            console.print(to_go_on, soft_wrap=True, markup=False)
            return last | {"stopped_by": trainer.stopped_by}
        if first:
            found = _conclude(trainer, {split: loaders[split] for split in loaders if split not in ("train", "dev")})
            scores = {f"{split}/{name}": value for split, each in found.items() for name, value in each.metrics.items()}
            trainer.finish(summary.settings(config), scores)
            summary.farewell(console, folder, found)
            last |= scores
    return last


def _model(config: Mapping[str, Any], vocab_size: int, resume: bool) -> nn.Module:
    """The model as training begins; one that goes on gets its weights from its own checkpoint."""
    torch.manual_seed(_seed_for(config["seed"], "init"))
    model = build_model(config, vocab_size)
    if config["init_from"] and not resume:
        load_weights(model, checkpoint.load(checkpoints(config["init_from"]), "best"), config["init_from"])
    return model


def _trainer(
    config: Mapping[str, Any],
    settings: TrainerConfig,
    model: nn.Module,
    task: Any,
    loaders: Mapping[str, Loader],
    folder: Path,
    device: torch.device,
    watch: Watch,
) -> Trainer:
    groups = parameter_groups(model, kinds=config["kinds"], **group_settings(config["optim"]))
    optimizer = build_optimizer(config["optim"], groups, config["momentum"], config["spectrum"])
    for kind, own in config["kinds"].items():
        for key in ("alpha", "n_bands"):
            if own[key] is not None and key not in optimizer.defaults:
                told = f"optim={config['optim']['name']} has no {key} for each kind"
                raise UserError(f"kinds.{kind}.{key}={own[key]} would change nothing, for {told}")
    if isinstance(optimizer, AGC) and settings.clip and optimizer.clip >= settings.clip:
        told = "optim.clip=%s cuts nothing that trainer.clip=%s leaves; trainer.clip=null cuts nothing first"
        log.warning(told, optimizer.clip, settings.clip)
    return Trainer(
        model,
        task,
        optimizer,
        lambda total: build("schedule", config["schedule"], total_steps=total),
        loaders["train"].train,
        loaders["dev"].plain,
        partial(_seed_for, config["seed"]),
        folder,
        settings,
        device,
        None if watch == "off" else Microscope(model, optimizer, watch, settings.log_every),
    )


def _restore(trainer: Trainer, first: bool) -> None:
    """Puts the trainer where its folder's last checkpoint is. The scores there go, for they are of less training."""
    folder, saved = trainer.folder, checkpoint.load(checkpoints(trainer.folder))
    load_weights(trainer.model, saved, folder)
    trainer.restore(saved)
    for file in [*folder.glob("scores.*.json"), *folder.glob("hypotheses.*.tsv")] if first else []:
        file.unlink()


def _begin(config: Mapping[str, Any], folder: Path, tokenizer: Any) -> None:
    """Leaves in the folder what a run is built from again."""
    disk.write(folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
    disk.write(folder / "tokenizer.json", tokenizer.to_str(pretty=True))


def _conclude(trainer: Trainer, loaders: Mapping[str, Loader]) -> dict[str, Evaluation]:
    """Scores the best weights on what the run was not trained on.

    Raises:
        UserError: a recording cannot be decoded; what was trained is saved.
    """
    folder = trainer.folder
    load_weights(trainer.model, checkpoint.load(checkpoints(folder), "best"), folder)
    try:
        return score(loaders, trainer.model, trainer.task, trainer.device, folder)
    except UserError as error:
        again = command("evaluate", str(folder))
        raise UserError(f"{error}; the run is trained and saved: {again} scores it when that is mended") from error


def _refuse_misfits(config: Mapping[str, Any]) -> None:
    """Refuses data or a frontend of text where the task is one of speech, or the other way round."""
    task = config["task"]["name"]
    unit = get("task", task).unit
    for room in ("data", "frontend"):
        of = {name: getattr(get(room, name), "unit", unit) for name in registry.names(room)}
        name = config[room]["name"]
        if of.get(name, unit) != unit:
            fitting = ", ".join(other for other in of if of[other] == unit)
            raise UserError(f"{room}={name} is of {of[name]} and task={task} of {unit}; {room} may be {fitting}")


def _watch(value: Any) -> Watch:
    """The microscope's setting.

    Raises:
        UserError: there is no such setting.
    """
    watch = {False: "off"}.get(value, value)  # YAML reads a bare off as false
    if watch not in get_args(Watch):
        raise UserError(f"watch={value}: no such setting{registry.nearest(str(value), get_args(Watch))}")
    return watch


def data(config: Mapping[str, Any], split: str) -> Any:
    """The data set of a split; what it makes on disk, the first process makes alone."""
    if machine.rank() > 0:
        distributed.barrier()
    dataset = build("data", config["data"], split=split, seed=config["seed"])
    if distributed.is_initialized() and machine.rank() == 0:
        distributed.barrier()
    return dataset


def batches(config: Mapping[str, Any], dataset: Any, tokenizer: Any) -> Loader:
    """The loader of a data set; text is its own target."""
    return Loader(
        dataset, tokenizer if dataset.unit == "seconds" else None, config["seed"], LoaderConfig(**config["loader"])
    )


def _refuse_unlearnable(dataset: Any, task: Any, model: nn.Module) -> None:
    """Refuses a text longer than CTC can emit in the frames of its recording.

    Where the data skips what is bad, such utterances are counted instead; their loss is 0.
    """
    if dataset.unit != "seconds":
        return
    frames = model.frontend.frames((torch.tensor(dataset.lengths) * SAMPLE_RATE).long()).tolist()
    needed = [task.frames_needed(text) for text in dataset.texts]
    short = [i for i, (have, need) in enumerate(zip(frames, needed, strict=True)) if have < need]
    if short:
        i = short[0]
        told = f"{dataset.ids[i]} has {frames[i]} frames and its text needs {needed[i]}, more than CTC can emit"
        if not dataset.skip_bad:
            raise UserError(f"{told}; data.skip_bad=true trains without such recordings")
        log.warning("%d recordings are too short for their texts and teach nothing; the first: %s", len(short), told)


def score(
    loaders: Mapping[str, Loader], model: nn.Module, task: Any, device: torch.device, folder: Path
) -> dict[str, Evaluation]:
    """Decodes the splits; of each, writes `hypotheses.<split>.tsv` and `scores.<split>.json` into the folder."""
    found = {}
    for split, loader in loaders.items():
        found[split] = evaluate(model, task, loader.plain(), device)
        found[split].write(folder, split, loader.dataset.normaliser)
    return found


def _seed_for(seed: int, purpose: str, *numbers: int) -> int:
    """The seed of one random draw, a function of the run's seed, its purpose and its place alone."""
    words = json.dumps([seed, purpose, *numbers]).encode()
    return int.from_bytes(hashlib.sha256(words).digest()[:8], "little") >> 1
