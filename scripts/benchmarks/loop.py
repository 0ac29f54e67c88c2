"""famx's trainer against a hand-written loop of the same model, and its reports against none."""

import copy
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from benchmarks import interleaved, print_ratio
from famx.config.errors import explain_hydra_error
from famx.config.schema import CONF, register_schemas, to_plain
from famx.config.versions import VERSION_BASE
from famx.experiment.build import build_experiment, build_run_optimizer, build_trainer
from famx.experiment.resolve import resolve
from famx.monitoring.hooks import ProbeOptimizer, ReportMetrics, WriteRunLog
from famx.monitoring.optimizer_probe import OptimizerProbe
from famx.nn.batch import Batch
from famx.registry import build
from famx.training.device import select_device
from famx.training.loader_config import LoaderConfig
from famx.training.run_dir import RunDir
from famx.training.trainer import Trainer
from famx.training.trainer_config import TrainerConfig

NEVER = 10**9


class Prepared:
    """An experiment of command-line words, from which trainers and bare loops are made."""

    def __init__(self, *words: str):
        self.config = resolve(self.compose(*words))
        self.settings = TrainerConfig(**self.config["trainer"])
        device = select_device(self.settings.device, self.settings.threads)
        self.experiment = build_experiment(self.config, device)

    @staticmethod
    def compose(*words: str) -> dict[str, Any]:
        """Returns the config of the words, before it is resolved."""
        register_schemas(trainer=TrainerConfig, loader=LoaderConfig)
        with initialize_config_dir(str(CONF), **VERSION_BASE):
            try:
                return to_plain(compose("train", list(words)))
            except (HydraException, OmegaConfBaseException) as error:
                raise (explain_hydra_error(error, words) or error) from error

    def stream(self) -> Iterator[tuple[int, int, Batch]]:
        """Returns training batches without end."""
        return self.experiment.loader("train").train_batches()

    def trainer(self, folder: str, log_every: int | None, probe: str = "off") -> Trainer:
        """Builds a trainer over a copy of the model, which reports but never evaluates or saves."""
        experiment = copy.copy(self.experiment)
        experiment.model = copy.deepcopy(self.experiment.model)
        never = {"log_every": log_every, "eval_every": NEVER, "save_every": NEVER}
        settings = TrainerConfig(**(vars(self.settings) | never))
        optimizer = build_run_optimizer(experiment, settings)
        run_dir = RunDir(folder)
        run_log = WriteRunLog(run_dir, {})
        hooks = [ReportMetrics(), run_log]
        if probe != "off":
            watcher = OptimizerProbe(experiment.model, optimizer, probe)
            hooks.insert(0, ProbeOptimizer(watcher, run_dir, run_log))
        trainer = build_trainer(experiment, optimizer, settings, hooks)
        for hook in hooks:
            hook.on_start(trainer)
        return trainer

    def bare(self) -> tuple[nn.Module, Callable[[Batch], None]]:
        """Returns a copy of the model and the shortest loop that trains it by AdamW."""
        model = copy.deepcopy(self.experiment.model)
        task = self.experiment.task
        optim = self.config["optim"]
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=optim["lr"], weight_decay=optim["weight_decay"], fused=True
        )
        total_steps = self.config["trainer"]["max_steps"]
        schedule = build("schedule", self.config["schedule"], total_steps=total_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)

        def step(batch: Batch) -> None:
            model.train()
            loss = task.loss(model, batch)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

        return model, step


def main(words: list[str], rounds: int = 12, steps: int = 25) -> None:
    """Prints both ratios; the words are of the command line of `famx.train`."""
    max_steps = f"trainer.max_steps={2 * rounds * steps}"
    # the trainer against a bare loop
    prepared = Prepared(*words, max_steps)
    batches = first_batches(prepared, steps)
    _, bare_step = prepared.bare()
    with tempfile.TemporaryDirectory() as folder:
        loop = famx_loop(prepared.trainer(folder, 50), batches)

        def bare_loop(_: int) -> None:
            for _, _, batch in batches:
                bare_step(batch)

        _compare("loop / bare loop", loop, bare_loop, rounds, "1.05")
    # reports every 50 steps against none
    prepared = Prepared("optim=fam", *words, max_steps)
    batches = first_batches(prepared, steps)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other_folder:
        loop = famx_loop(prepared.trainer(folder, 50), batches)
        silent_loop = famx_loop(prepared.trainer(other_folder, NEVER), batches)
        _compare("reports / none", loop, silent_loop, rounds, "1.02")


def famx_loop(trainer: Trainer, batches: list[tuple[int, int, Batch]]) -> Callable[[int], None]:
    """Returns a function that trains once on each of the batches."""

    def loop(_: int) -> None:
        for batch in batches:
            trainer.advance(trainer.gradients.prefetch([batch]))

    return loop


def first_batches(prepared: Prepared, count: int) -> list[tuple[int, int, Batch]]:
    """Returns the first training batches."""
    stream = prepared.stream()
    return [next(stream) for _ in range(count)]


def _compare(
    name: str,
    loop: Callable[[int], None],
    baseline: Callable[[int], None],
    rounds: int,
    gate: str,
) -> None:
    for function in (loop, baseline):
        function(0)
    print_ratio(name, interleaved(loop, baseline, rounds), gate)
