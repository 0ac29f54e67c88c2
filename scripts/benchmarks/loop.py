"""famx's trainer against a hand-written loop of the same model and batches, and its reports against none."""

import copy
import tempfile
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from benchmarks import interleaved, told
from famx.config.errors import explain_hydra_error
from famx.config.schema import CONF, register_schemas, to_plain
from famx.experiment import run as experiment
from famx.monitoring.optimizer_probe import OptimizerProbe
from famx.monitoring.spectrum_log import SpectrumLog
from famx.monitoring.tensorboard import RunLog
from famx.optim._param_groups import group_settings
from famx.registry import build
from famx.training import device
from famx.training.loader import LoaderConfig
from famx.training.trainer import Trainer, TrainerConfig

NEVER = 10**9


class Prepared:
    """Everything a run is made of, for a command line's words."""

    def __init__(self, *words: str):
        self.config = experiment.settle(self.composed(*words))
        self.settings = TrainerConfig(**self.config["trainer"])
        self.device = device.select_device(self.settings.device, self.settings.threads)
        self.data = experiment.data(self.config, "train")
        units = {key: value for key, value in self.config["task"].items() if key == "units"}
        self.tokenizer = self.data.build_tokenizer(**units)
        self.task = build("task", self.config["task"], tokenizer=self.tokenizer)
        torch.manual_seed(0)
        self.model = experiment.build_model(self.config, self.tokenizer.get_vocab_size()).to(
            self.device
        )

    @staticmethod
    def composed(*words: str) -> dict:
        """The config of the words, before it is settled."""
        register_schemas(trainer=TrainerConfig, loader=LoaderConfig)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            try:
                return to_plain(compose("train", list(words)))
            except (HydraException, OmegaConfBaseException) as error:
                raise explain_hydra_error(error, to_plain(compose("train"))) from error

    def stream(self):
        return experiment.batches(self.config, self.data, self.tokenizer).train()

    def trainer(self, folder: str, log_every: int, watch: str = "off") -> Trainer:
        """One that never evaluates or saves, over a copy of the model."""
        model = copy.deepcopy(self.model)
        optim = self.config["optim"]
        groups = experiment.parameter_groups(model, **group_settings(optim))
        settings = vars(self.settings) | {
            "log_every": log_every,
            "eval_every": NEVER,
            "save_every": NEVER,
        }
        optimizer = experiment.build_optimizer(optim, groups)
        trainer = Trainer(
            model,
            self.task,
            optimizer,
            lambda total: build("schedule", self.config["schedule"], total_steps=total),
            lambda *place: iter(()),
            lambda: iter(()),
            lambda *place: hash(place) % 2**31,
            Path(folder),
            TrainerConfig(**settings),
            self.device,
            None if watch == "off" else OptimizerProbe(model, optimizer, watch, log_every),
        )
        trainer.screen.console.quiet = True
        seen = trainer.microscope
        trainer.journal = RunLog(Path(folder))
        trainer.record = seen and SpectrumLog(Path(folder), seen.names, seen.kinds, 0)
        return trainer

    def bare(self):
        """The shortest loop that trains a copy of the model: forward, backward, clip, step, schedule."""
        model, config = copy.deepcopy(self.model), self.config
        rate, weight_decay = config["optim"]["lr"], config["optim"]["weight_decay"]
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=rate, weight_decay=weight_decay, fused=True
        )
        schedule = build("schedule", config["schedule"], total_steps=config["trainer"]["max_steps"])
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)

        def step(batch):
            model.train()
            loss = self.task.loss(model, batch)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

        return model, step


def main(words: list[str], rounds: int = 12, steps: int = 25) -> None:
    """Prints both ratios; the words are of the command line of `famx.train`."""
    for name, log_every, gate in (("loop / bare loop", 50, "1.05"), ("reports / none", 50, "1.02")):
        optim = ["optim=fam"] if "reports" in name else []
        prepared = Prepared(*optim, *words, f"trainer.max_steps={2 * rounds * steps}")
        stream = prepared.stream()
        batches = [next(stream) for _ in range(steps)]
        with tempfile.TemporaryDirectory() as folder:
            loops = [famx_loop(prepared.trainer(folder, log_every), batches)]
            if optim:
                loops.append(famx_loop(prepared.trainer(folder, NEVER), batches))
            else:
                _, step = prepared.bare()
                loops.append(
                    lambda _, step=step, batches=batches: [step(batch) for _, _, batch in batches]
                )
            for loop in loops:
                loop(0)
            told(name, interleaved(*loops, rounds), gate)


def famx_loop(trainer: Trainer, batches: list):
    return lambda _: [trainer.advance(iter([batch])) for batch in batches]
