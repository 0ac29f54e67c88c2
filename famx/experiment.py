"""From a composed config to a trained and evaluated run: the one place where everything is put together."""

import ctypes
import hashlib
import inspect
import json
import logging
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
import yaml
from rich.console import Console
from tokenizers import Tokenizer
from torch import distributed, nn

from famx import checkpoint, registry, summary
from famx.data.base import SAMPLE_RATE
from famx.data.loader import Loader, LoaderConfig
from famx.draw import drawn, table
from famx.microscope import Microscope, Watch
from famx.model import build_model, layer_choices
from famx.notation import UserError
from famx.optim import parameter_groups
from famx.registry import build, get
from famx.task.base import Evaluation, evaluate
from famx.trainer import Trainer, TrainerConfig

__all__ = ["build_model", "build_optimizer", "run", "settle"]

log = logging.getLogger(__name__)


def settle(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with all that is left open decided: `usual` frontends and data are what the task reads, layers drawn.

    `model.layers` becomes complete, and builds the same model wherever it is given; what it was drawn from moves to
    `model.drawn`. The optimizer's `usual` momentum and spectrum stay, since an optimizer may wear none.
    """
    task = get("task", config["task"]["name"])
    worn = {room: {"name": name} for room, name in task.usual.items() if config[room]["name"] == "usual"}
    model = dict(config["model"])
    if model.get("draw"):
        model |= {"layers": drawn(config), "drawn": model.pop("draw")}
    elif model.get("layers") is not None:
        model["layers"] = layer_choices(config)
    if model.get("layers"):
        model["n_layers"] = len(model["layers"])
    return dict(config) | worn | {"model": model}


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
    return build("optim", config, params=params, **{room: partial(build, room, c) for room, c in given.items()})


def run(config: Mapping[str, Any], folder: Path, resume: bool = False) -> dict[str, Any]:
    """Trains what the config describes in `folder`, then scores every split that it was not trained on.

    Returns:
        The last metrics by tag, with `stopped_by` among them if a signal ended the run.

    Raises:
        UserError: a mistake in the config, the data, or the run to go on from.
    """
    config, settings = settle(config), TrainerConfig(**config["trainer"])
    watch = _watch(config["watch"])
    device = _device(settings)
    first = _join_processes(device)
    console = Console(quiet=not first)
    train = data(config, "train")
    kept = folder / "tokenizer.json"
    units = {key: value for key, value in config["task"].items() if key == "units"}
    tokenizer = Tokenizer.from_file(str(kept)) if resume else train.build_tokenizer(**units)
    task = build("task", config["task"], tokenizer=tokenizer)
    torch.manual_seed(_seed_for(config["seed"], "init"))
    model = build_model(config, tokenizer.get_vocab_size())
    if config["init_from"]:
        load_weights(model, checkpoint.load(checkpoints(config["init_from"]), "best"), config["init_from"])
    model.to(device)
    dev = data(config, "dev")
    _refuse_unlearnable(train, task, model)
    groups = parameter_groups(model, kinds=config["kinds"], **_group_settings(config["optim"]))
    optimizer = build_optimizer(config["optim"], groups, config["momentum"], config["spectrum"])
    trainer = Trainer(
        model,
        task,
        optimizer,
        lambda total: build("schedule", config["schedule"], total_steps=total),
        batches(config, train, tokenizer).train,
        batches(config, dev, tokenizer).plain,
        partial(_seed_for, config["seed"]),
        folder,
        settings,
        device,
        Microscope(model, optimizer, watch, settings.log_every) if first and watch != "off" else None,
    )
    if resume:
        saved = checkpoint.load(checkpoints(folder))
        load_weights(model, saved, folder)
        trainer.restore(saved)
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False))
        tokenizer.save(str(folder / "tokenizer.json"))
        if config["model"].get("layers"):
            console.print(table(config))
        console.print(summary.summary(config, model, train, device), summary.groups(optimizer, folder))
    last = trainer.fit()
    if trainer.stopped_by:
        console.print(f"stopped at step {trainer.step} and saved; to go on:\n  python -m famx.train resume={folder}")
        return last | {"stopped_by": trainer.stopped_by}
    if first:
        load_weights(model, checkpoint.load(checkpoints(folder), "best"), folder)
        scored = score(
            config, model, task, tokenizer, [s for s in train.splits if s not in ("train", "dev")], device, folder
        )
        last |= {f"{split}/{name}": value for split, found in scored.items() for name, value in found.metrics.items()}
        trainer.finish(_settings(config), last)
        summary.farewell(console, folder, scored)
    return last


def _watch(value: Any) -> Watch:
    """The microscope's setting.

    Raises:
        UserError: there is no such setting.
    """
    watch = {False: "off"}.get(value, value)  # YAML reads a bare off as false
    if watch not in get_args(Watch):
        raise UserError(f"watch={value}: no such setting{registry.nearest(str(value), get_args(Watch))}")
    return watch


def _group_settings(optim: Mapping[str, Any]) -> dict[str, Any]:
    """What `parameter_groups` is told: learning rate and decay, and what else the user set for all kinds alike."""
    if "base" in optim:  # wrapped around another, which it builds by name
        rate = next((optim[key] for key in ("lr", "base_lr") if optim[key] is not None), None)
        usual = registry.hyperparameters(get("optim", optim["base"]))
        optim = {"name": optim["base"], "lr": usual["lr"].default if rate is None else rate}
        optim |= {"weight_decay": usual["weight_decay"].default} if "weight_decay" in usual else {}
    known = registry.hyperparameters(get("optim", optim["name"]))
    chosen = {
        key for key in ("alpha", "n_bands") if key in known and optim.get(key, known[key].default) != known[key].default
    }
    return {key: optim[key] for key in {"lr", "weight_decay", *chosen} if key in optim}


def data(config: Mapping[str, Any], split: str) -> Any:
    """The data set of a split; what it makes on disk, the first process makes alone."""
    if _rank() > 0:
        distributed.barrier()
    dataset = build("data", config["data"], split=split, seed=config["seed"])
    if distributed.is_initialized() and _rank() == 0:
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
    config: Mapping[str, Any], model: nn.Module, task: Any, tokenizer: Any, splits: list[str], device: Any, folder: Path
) -> dict[str, Evaluation]:
    """Decodes the splits; of each, writes `hypotheses.<split>.tsv` and `scores.<split>.json` into the folder."""
    found = {}
    for split in splits:
        dataset = build("data", config["data"], split=split, seed=config["seed"])
        found[split] = evaluate(model, task, batches(config, dataset, tokenizer).plain(), device)
        found[split].write(folder, split, dataset.normaliser)
    return found


def load_weights(model: nn.Module, saved: Mapping[str, Any], source: Any) -> None:
    """Puts the averaged weights of a checkpoint, or its plain ones, into the model.

    Raises:
        UserError: they are another model's.
    """
    averaged = saved.get("averaged", {})
    theirs = {key.removeprefix("module."): value for key, value in averaged.items() if key != "n_averaged"}
    ours, theirs = model.state_dict(), theirs or saved["model"]
    wrong = sorted(ours.keys() ^ theirs.keys()) or [k for k in ours if ours[k].shape != theirs[k].shape]
    if wrong:
        shapes = [tuple(tree[wrong[0]].shape) if wrong[0] in tree else "absent" for tree in (theirs, ours)]
        raise UserError(f"{source} holds another model: {wrong[0]} is {shapes[0]} there and {shapes[1]} here")
    model.load_state_dict(theirs)


def checkpoints(run: str | Path) -> Path:
    """The checkpoint folder of a run.

    Raises:
        UserError: the run has none.
    """
    folder = Path(run) / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"{run} is not a run with checkpoints: there is no {folder}")
    return folder


def _seed_for(seed: int, purpose: str, *numbers: int) -> int:
    """The seed of one random draw, a function of the run's seed, its purpose and its place alone."""
    words = json.dumps([seed, purpose, *numbers]).encode()
    return int.from_bytes(hashlib.sha256(words).digest()[:8], "little") >> 1


def _rank() -> int:
    return int(os.environ.get("RANK", 0))


def _join_processes(device: torch.device) -> bool:
    """Joins torchrun's other processes, if there are any; whether this is the one that writes."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return _rank() == 0


def _device(settings: TrainerConfig) -> torch.device:
    """The device to train on, ready for it.

    Raises:
        UserError: it is not there.
    """
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = next(d for d, there in have.items() if there) if settings.device == "auto" else settings.device
    if not have[name]:
        raise UserError(
            f"trainer.device={name} is not on this machine, which has {', '.join(d for d in have if have[d])}"
        )
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if name == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if name == "cpu" and sys.platform == "linux":
        # glibc gives every large block back to the kernel at once; keeping them saves a page fault a page and step
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
                libc.mallopt(option, 2**30)
    return torch.device(name)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What TensorBoard compares runs by: the chosen parts, the dimensions, the optimizer's numbers, the seed."""
    sizes = {key: value for key, value in config["model"].items() if isinstance(value, str | int)}
    numbers = {f"optim.{key}": value for key, value in config["optim"].items() if isinstance(value, int | float)}
    return summary.parts(config) | sizes | numbers | {"seed": config["seed"]}
