"""From a composed config to a trained and evaluated run: the one place where everything is put together."""

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console, Group
from torch import nn

from famx import files
from famx.config.command import format_command
from famx.experiment import report
from famx.experiment.build import _model, _refuse_unlearnable, _trainer, build_dataset, build_loader
from famx.experiment.resolve import check_modalities, probe_level, resolve
from famx.experiment.search import layer_table
from famx.notation import UserError
from famx.registry import build
from famx.training import checkpoint
from famx.training.device import join_process_group, select_device
from famx.training.checkpoint import load_weights
from famx.training.evaluate import Evaluation, evaluate
from famx.training.loader import Loader
from famx.training.run_dir import checkpoint_dir, load_tokenizer, lock, require_empty
from famx.training.trainer import Trainer, TrainerConfig

log = logging.getLogger(__name__)


def run(config: Mapping[str, Any], folder: Path, resume: bool = False) -> dict[str, Any]:
    """Trains what the config describes in `folder`, then scores every split that it was not trained on.

    Returns:
        The last metrics by tag, with `stopped_by` among them if a signal ended the run.

    Raises:
        UserError: a mistake in the config, the data, or the run to go on from.
    """
    config, settings = resolve(config), TrainerConfig(**config["trainer"])
    check_modalities(config)
    watch, device = probe_level(config["watch"]), select_device(settings.device, settings.threads)
    first = join_process_group(device)
    console = Console(quiet=not first)
    if first and not resume:
        require_empty(folder)
    train = build_dataset(config, "train")
    units = {key: value for key, value in config["task"].items() if key == "units"}
    tokenizer = load_tokenizer(folder) if resume else train.build_tokenizer(**units)
    loaders = {
        s: build_loader(config, train if s == "train" else build_dataset(config, s), tokenizer)
        for s in train.splits
    }
    task = build("task", config["task"], tokenizer=tokenizer)
    model = _model(config, tokenizer.get_vocab_size(), resume).to(device)
    for loader in loaders.values():
        _refuse_unlearnable(loader.dataset, task, model)
    trainer = _trainer(
        config, settings, model, task, loaders, folder, device, watch if first else "off"
    )
    layers = [layer_table(config)] if config["model"].get("layers") else []
    overview = Group(*layers, report.model_table(config, model, train, device))
    with lock(folder, resume) if first else contextlib.nullcontext():
        if resume:
            _restore(trainer, first)
        if first:
            _begin(config, folder, tokenizer)
            console.print(overview, report.param_group_table(trainer.optimizer, folder))
        last = trainer.fit()
        if trainer.stopped_by:
            to_go_on = f"stopped at step {trainer.step} and saved; to go on:\n  " + format_command(
                "train", f"resume={folder}"
            )
            console.print(to_go_on, soft_wrap=True, markup=False)
            return last | {"stopped_by": trainer.stopped_by}
        if first:
            found = _conclude(
                trainer,
                {split: loaders[split] for split in loaders if split not in ("train", "dev")},
            )
            scores = {
                f"{split}/{name}": value
                for split, each in found.items()
                for name, value in each.metrics.items()
            }
            trainer.finish(report.hparams(config), scores)
            report.print_next_commands(console, folder, found)
            last |= scores
    return last


def _restore(trainer: Trainer, first: bool) -> None:
    """Puts the trainer where its folder's last checkpoint is. The scores there go, for they are of less training."""
    folder, saved = trainer.folder, checkpoint.load(checkpoint_dir(trainer.folder))
    load_weights(trainer.model, saved, folder)
    trainer.restore(saved)
    for file in [*folder.glob("scores.*.json"), *folder.glob("hypotheses.*.tsv")] if first else []:
        file.unlink()


def _begin(config: Mapping[str, Any], folder: Path, tokenizer: Any) -> None:
    """Leaves in the folder what a run is built from again."""
    files.write_atomic(folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
    files.write_atomic(folder / "tokenizer.json", tokenizer.to_str(pretty=True))


def _conclude(trainer: Trainer, loaders: Mapping[str, Loader]) -> dict[str, Evaluation]:
    """Scores the best weights on what the run was not trained on.

    Raises:
        UserError: a recording cannot be decoded; what was trained is saved.
    """
    folder = trainer.folder
    load_weights(trainer.model, checkpoint.load(checkpoint_dir(folder), "best"), folder)
    try:
        return score(loaders, trainer.model, trainer.task, trainer.device, folder)
    except UserError as error:
        again = format_command("evaluate", str(folder))
        raise UserError(
            f"{error}; the run is trained and saved: {again} scores it when that is mended"
        ) from error


def score(
    loaders: Mapping[str, Loader], model: nn.Module, task: Any, device: torch.device, folder: Path
) -> dict[str, Evaluation]:
    """Decodes the splits; of each, writes `hypotheses.<split>.tsv` and `scores.<split>.json` into the folder."""
    found = {}
    for split, loader in loaders.items():
        found[split] = evaluate(model, task, loader.plain(), device)
        found[split].write(folder, split, loader.dataset.normaliser)
    return found
