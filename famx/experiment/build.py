"""Builds everything a run is made of from its config."""

import inspect
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from famx.model import build_model
from famx.monitoring.optimizer_probe import OptimizerProbe, ProbeLevel
from famx.notation import SAMPLE_RATE, UserError
from famx.optim import AGC, parameter_groups
from famx.optim._param_groups import group_settings
from famx.registry import build, get
from famx.seeding import seed_for
from famx.training import checkpoint, device
from famx.training.checkpoint import load_weights
from famx.training.loader import Loader, LoaderConfig
from famx.training.run_dir import checkpoint_dir
from famx.training.trainer import Trainer, TrainerConfig

log = logging.getLogger(__name__)


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
            raise UserError(
                f"optim={config['name']} wears no {room}, so {room}={choice['name']} would change nothing"
            )
    optimizer = build(
        "optim",
        config,
        params=params,
        **{room: partial(build, room, c) for room, c in given.items()},
    )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(
            f"optim={config['name']} is a {type(optimizer).__name__}, which is no torch.optim.Optimizer"
        )
    return optimizer


def _model(config: Mapping[str, Any], vocab_size: int, resume: bool) -> nn.Module:
    """The model as training begins; one that goes on gets its weights from its own checkpoint."""
    torch.manual_seed(seed_for(config["seed"], "init"))
    model = build_model(config, vocab_size)
    if config["init_from"] and not resume:
        load_weights(
            model, checkpoint.load(checkpoint_dir(config["init_from"]), "best"), config["init_from"]
        )
    return model


def _trainer(
    config: Mapping[str, Any],
    settings: TrainerConfig,
    model: nn.Module,
    task: Any,
    loaders: Mapping[str, Loader],
    folder: Path,
    device: torch.device,
    watch: ProbeLevel,
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
        partial(seed_for, config["seed"]),
        folder,
        settings,
        device,
        None if watch == "off" else OptimizerProbe(model, optimizer, watch, settings.log_every),
    )


def build_dataset(config: Mapping[str, Any], split: str) -> Any:
    """The data set of a split; what it makes on disk, the first process makes alone."""
    if device.rank() > 0:
        distributed.barrier()
    dataset = build("data", config["data"], split=split, seed=config["seed"])
    if distributed.is_initialized() and device.rank() == 0:
        distributed.barrier()
    return dataset


def build_loader(config: Mapping[str, Any], dataset: Any, tokenizer: Any) -> Loader:
    """The loader of a data set; text is its own target."""
    return Loader(
        dataset,
        tokenizer if dataset.unit == "seconds" else None,
        config["seed"],
        LoaderConfig(**config["loader"]),
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
        log.warning(
            "%d recordings are too short for their texts and teach nothing; the first: %s",
            len(short),
            told,
        )
