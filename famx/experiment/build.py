"""Builds the objects of a run, for training, evaluation, benchmarks and tests."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor, distributed

from famx.config.sections import FinetuneConfig
from famx.data.base import Dataset
from famx.decode._run_fusion import LanguageModelRun
from famx.experiment.transfer import depth_factors
from famx.frontend.base import Frontend
from famx.model import Model, build_model
from famx.notation import Modality, UserError
from famx.optim import AGC, parameter_groups
from famx.optim._param_groups import group_settings, scale_rates
from famx.registry import build, constructor_parameters, get
from famx.seeding import seed_for
from famx.task.base import Task
from famx.training import checkpoint
from famx.training.checkpoint import load_weights
from famx.training.device import memory_of, rank
from famx.training.hooks import Hook
from famx.training.loader import Loader
from famx.training.loader_config import LoaderConfig
from famx.training.run_dir import RunDir
from famx.training.trainer import Trainer
from famx.training.trainer_config import TrainerConfig

log = logging.getLogger(__name__)

Config = Mapping[str, Any]

MAX_CONTEXT = 128  # tokens of a language model whose data has no blocks


@dataclass
class Experiment:
    """The objects that a resolved config describes.

    Args:
        config: the resolved config.
        device: device of the model.
        tokenizer: tokenizer of the run, or one built from its training data.
        task: the task with its decoder.
        model: the model with initial weights.
    """

    config: Config
    device: torch.device
    tokenizer: Tokenizer
    task: Task
    model: Model
    loaders: dict[str, Loader] = field(default_factory=dict)

    @property
    def modality(self) -> Modality:
        """The modality of the data."""
        return get("data", self.config["data"]["name"]).modality

    @property
    def transcribes(self) -> bool:
        """Whether the model turns recordings into texts; a label of a recording is none."""
        return self.modality is Modality.SPEECH and self.task.output != "labels"

    def loader(self, split: str) -> Loader:
        """Returns the loader of a split, built when it is first needed.

        Raises:
            UserError: the data cannot be read.
        """
        if split not in self.loaders:
            self.loaders[split] = self._build_loader(build_dataset(self.config, split), split)
        return self.loaders[split]

    def _build_loader(self, dataset: Dataset, split: str) -> Loader:
        target_tokenizer = None if self.task.predicts_inputs else self.tokenizer
        dataset.use_tokenizer(self.tokenizer)
        settings = LoaderConfig(**self.config["loader"])
        # the two parts alone, which are sent to the processes of the loader
        learnable = partial(_are_learnable, self.model.frontend, self.task)
        regularizes = settings.regularizes(dataset.total_length)
        two_views = split == "train" and self.task.compares_views(regularizes)
        return Loader(
            dataset,
            target_tokenizer,
            self.config["seed"],
            settings,
            self.device,
            split,
            learnable,
            two_views,
        )


def _are_learnable(
    frontend: Frontend, task: Task, n_samples: Int[Tensor, " items"], texts: Sequence[str]
) -> list[bool]:
    """Returns whether each text can be learned from a recording of so many samples."""
    n_frames = frontend.n_frames(n_samples).tolist()
    pairs = zip(n_frames, texts, strict=True)
    return [task.reject(frames, text) is None for frames, text in pairs]


def build_experiment(
    config: Config, device: torch.device, tokenizer: Tokenizer | None = None
) -> Experiment:
    """Builds the task and the model of a resolved config.

    Args:
        tokenizer: tokenizer of an existing run; None builds one from the training data.

    Raises:
        UserError: the data cannot be read, or a part rejects its options.
    """
    # tokenizer and task
    train = None
    if tokenizer is None:
        train = build_dataset(config, "train")
        tokenizer = _build_tokenizer(config["task"], train)
    load_run = partial(load_language_model, device=device)
    decode = partial(build, "decode", config["decode"], load_run=load_run)
    task = build("task", config["task"], tokenizer=tokenizer, decode=decode)
    check_memory(config, tokenizer.get_vocab_size(), device)
    # seeded here, so that nothing built before changes the initial weights
    torch.manual_seed(seed_for(config["seed"], "init"))
    input_vocab_size = get("data", config["data"]["name"]).input_vocab_size
    model = build_model(config, tokenizer.get_vocab_size(), input_vocab_size).to(device)
    experiment = Experiment(config, device, tokenizer, task, model)
    if train is not None:
        experiment.loaders["train"] = experiment._build_loader(train, "train")
    return experiment


def _build_tokenizer(task: Config, train: Dataset) -> Tokenizer:
    """Builds the tokenizer of a task from its training data."""
    task_class = get("task", task["name"])
    vocab_size = task.get("vocab_size", 0)
    subwords = task.get("subwords", "bpe")
    if subwords == "bpe":  # tasks of users may have no other kind
        return task_class.build_tokenizer(train, vocab_size)
    return task_class.build_tokenizer(train, vocab_size, subwords)


def load_language_model(folder: str, device: torch.device) -> LanguageModelRun:
    """Loads the run of a language model, which a decoder adds to the scores of another run.

    Raises:
        UserError: there is no such run, it was edited, or its model predicts no tokens.
    """
    run_dir = RunDir(folder)
    if not run_dir.config_file.exists():
        raise UserError(
            f"decode.lm={folder} is a folder without a run: it names an ARPA file, or the folder "
            "of a run of task=lm"
        )
    run_dir.require_unedited("no option; decode.lm is used as it was trained")
    saved = checkpoint.load(run_dir.require_checkpoints(), "best")
    config = run_dir.load_config()
    language_model = build_experiment(config, device, run_dir.load_tokenizer())
    if language_model.task.output != "tokens":
        raise UserError(
            f"decode.lm={folder} is a run of task={config['task']['name']}; a language model is a "
            "run of task=lm"
        )
    load_weights(language_model.model, saved, run_dir)
    language_model.model.eval()
    return LanguageModelRun(
        folder, language_model.model, language_model.tokenizer, device, context_size(config)
    )


def context_size(config: Config) -> int:
    """Returns the number of tokens that a language model was trained on at once."""
    size: int = config["data"].get("block", MAX_CONTEXT)
    return size


def check_memory(config: Config, vocab_size: int, device: torch.device) -> None:
    """Checks that the weights of a model and their gradients fit into memory, before it is built.

    The parameters are counted without memory for them, in one layer of each kind.

    Raises:
        UserError: they do not fit; the message has both sizes.
    """
    model_config = config["model"]
    n_layers = model_config["n_layers"]
    if model_config.get("layers"):
        n_layers = len(model_config["layers"])
    try:
        model = build_without_memory(config, vocab_size)
    except Exception:
        # a part that cannot be built so, or a size that it does not support, which it reports
        return
    in_layers = sum(p.numel() for p in model.layers.parameters())
    others = sum(p.numel() for p in model.parameters()) - in_layers
    n_parameters = others + in_layers * n_layers // len(model.layers)
    # a weight and its gradient have 4 bytes each
    required = 8 * n_parameters
    available = memory_of(device)
    if required > available:
        raise UserError(
            f"model.d_model={model_config['d_model']} with {n_layers} layers has "
            f"{n_parameters:,} parameters, which need {required / 1e9:,.0f} GB with their "
            f"gradients, and {device.type} has {available / 1e9:,.0f} GB: choose smaller sizes"
        )


def build_without_memory(config: Config, vocab_size: int) -> Model:
    """Builds a model on the meta device; equal layers are built once.

    Raises:
        UserError: a part does not support the sizes.
        Exception: a part cannot be built on the meta device.
    """
    model_config = config["model"]
    if not model_config.get("layers"):
        model_config = {**model_config, "n_layers": 1}
    with torch.device("meta"):
        return build_model({**config, "model": model_config}, vocab_size)


def build_dataset(config: Config, split: str) -> Dataset:
    """Builds the data set of a split; the first process creates its files, if it needs any."""
    # the other processes wait until the first has written its files, then read them
    if rank() > 0:
        distributed.barrier()
    dataset = build("data", config["data"], split=split, seed=config["seed"])
    if distributed.is_initialized() and rank() == 0:
        distributed.barrier()
    return dataset


def build_optimizer(
    config: Config,
    params: Any,
    momentum: Config | None = None,
    spectrum: Config | None = None,
) -> torch.optim.Optimizer:
    """Builds the optimizer that `config["name"]` names over parameters or groups of them.

    Args:
        momentum, spectrum: configs of its momentum rule and of the spectrum that the rule measures;
            None or the name `default` for the default of the optimizer.

    Raises:
        UserError: an unknown part or key, or a rule for an optimizer that takes none.
    """
    # factories of the momentum rule and the spectrum, if the optimizer takes them
    name = config["name"]
    parameters = constructor_parameters(get("optim", name))
    factories = {}
    for room, choice in (("momentum", momentum), ("spectrum", spectrum)):
        if not choice or choice["name"] == "default":
            continue
        if room not in parameters:
            noun = "momentum rule" if room == "momentum" else "spectrum"
            raise UserError(f"optim={name} takes no {noun}; remove {room}={choice['name']}")
        factories[room] = partial(build, room, choice)
    # a user's part may be of any class
    optimizer = build("optim", config, params=params, **factories)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(
            f"optim={name} is a {type(optimizer).__name__}, not a torch.optim.Optimizer"
        )
    return optimizer


def build_trainer(
    experiment: Experiment,
    optimizer: torch.optim.Optimizer,
    settings: TrainerConfig,
    hooks: Sequence[Hook],
) -> Trainer:
    """Builds the trainer of an experiment."""
    config = experiment.config
    return Trainer(
        model=experiment.model,
        task=experiment.task,
        optimizer=optimizer,
        schedule=lambda total_steps: build("schedule", config["schedule"], total_steps=total_steps),
        batches=experiment.loader("train").train_batches,
        seed_for=partial(seed_for, config["seed"]),
        config=settings,
        device=experiment.device,
        hooks=hooks,
    )


def build_run_optimizer(experiment: Experiment, settings: TrainerConfig) -> torch.optim.Optimizer:
    """Builds the optimizer of a run over the parameter groups of its model.

    Raises:
        UserError: a setting of `param_groups` has no effect on this optimizer.
    """
    config = experiment.config
    # one group per kind of parameter, with its own rate, decay, momentum and bands
    groups = parameter_groups(
        experiment.model, kinds=config["param_groups"], **group_settings(config["optim"])
    )
    decay = FinetuneConfig(**config["finetune"]).layer_decay
    if decay != 1:
        groups = scale_rates(groups, depth_factors(experiment.model, decay))
    optimizer = build_optimizer(config["optim"], groups, config["momentum"], config["spectrum"])
    # a setting without effect is a mistake
    for kind, group in config["param_groups"].items():
        for key in ("alpha", "n_bands"):
            if group[key] is not None and key not in optimizer.defaults:
                raise UserError(
                    f"param_groups.{kind}.{key}={group[key]} would change nothing: "
                    f"optim={config['optim']['name']} has no {key} per kind"
                )
    # gradients are clipped by both
    if isinstance(optimizer, AGC) and settings.unit_clip and optimizer.clip >= settings.unit_clip:
        log.warning(
            "optim.clip=%s has no effect after trainer.unit_clip=%s, which is tighter; "
            "trainer.unit_clip=null turns that off",
            optimizer.clip,
            settings.unit_clip,
        )
    return optimizer
