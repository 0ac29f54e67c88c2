"""Runs an experiment: trains the model of a config, then scores it on the test splits."""

import contextlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, Group

from famx import files
from famx.config.command import format_command
from famx.config.sections import FinetuneConfig
from famx.experiment import report
from famx.experiment.build import (
    Experiment,
    build_experiment,
    build_run_optimizer,
    build_trainer,
)
from famx.experiment.checks import check_learnable
from famx.experiment.data_record import check_data
from famx.experiment.resolve import check_parts_fit, is_on, probe_level, resolve
from famx.experiment.scoring import score
from famx.experiment.search import layer_table
from famx.experiment.transfer import Transfer, freeze, initialize_from
from famx.experiment.user_parts import build_user_hooks, is_checked
from famx.monitoring.hooks import ProbeOptimizer, ReportMetrics, ShowProgress, WriteRunLog
from famx.monitoring.optimizer_probe import OptimizerProbe
from famx.monitoring.pictures import DrawPictures
from famx.monitoring.trackers import DEFAULT, check_logger
from famx.nn.hooks import StartsPretrained
from famx.notation import UserError
from famx.training import checkpoint
from famx.training.checkpoint import describe_weights, load_weights
from famx.training.device import (
    describe_device,
    join_process_group,
    peak_memory,
    select_device,
)
from famx.training.evaluate import Evaluation
from famx.training.heartbeat import watch_processes
from famx.training.hooks import EvaluateOnDev, FollowPlans, Hook, SaveCheckpoints, StopOnDivergence
from famx.training.identity import changed_files, identity, list_files, read_code
from famx.training.run_dir import RunDir
from famx.training.trainer import Trainer
from famx.training.trainer_config import TrainerConfig

log = logging.getLogger(__name__)


def run(
    config: Mapping[str, Any],
    folder: Path,
    resume: bool = False,
    trust_edits: bool = False,
    plans: Sequence[Sequence[int]] = (),
    is_temporary: bool = False,
) -> dict[str, Any]:
    """Trains the model of a config in `folder`, then scores all splits except train and dev.

    Args:
        is_temporary: whether the folder is removed afterwards, so that no command can use it.
        trust_edits: whether options of the optimizer in the config replace those of a checkpoint.
        plans: plans of a run with a limit of time that is repeated; see `Trainer.plans`.

    Returns:
        The latest metrics by tag; with `stopped_by`, the number of the signal that ended the run.

    Raises:
        UserError: a mistake in the config, the data, or the run to resume.
    """
    # all checks come before anything is written
    config = _checked(config, is_temporary)
    settings = TrainerConfig(**config["trainer"])
    device = select_device(settings.device, settings.threads)
    is_main_process = join_process_group(device)
    run_dir = RunDir(folder)
    if is_main_process and not resume:
        run_dir.require_empty()

    # the objects of the run
    experiment = _build_learnable(config, device, run_dir if resume else None)
    pretrained = None if resume else _load_pretrained(experiment)
    transfer = None if resume else _initialize(experiment)
    frozen = freeze(experiment.model, FinetuneConfig(**config["finetune"]), settings.max_steps)
    optimizer = build_run_optimizer(experiment, settings)
    run_log = WriteRunLog(run_dir, report.hparams(config), config["logger"])
    hooks = [*frozen, *training_hooks(run_dir, experiment, plans)]
    if is_main_process:
        hooks += monitoring_hooks(experiment, optimizer, settings, run_dir, run_log)
    trainer = build_trainer(experiment, optimizer, settings, hooks)
    # only the first of the processes writes to the folder
    with contextlib.ExitStack() as stack:
        if is_main_process:
            _open_folder(stack, run_dir, run_log, resume)
        if resume:
            _restore(trainer, run_dir, trust_edits)
        console, commands = _consoles(is_main_process, is_temporary)
        if is_main_process:
            _begin(console, experiment, trainer, run_log, transfer, pretrained)
        with watch_processes():
            latest = trainer.fit()
        if trainer.stopped_by:
            _print_stopped(commands, trainer, run_dir)
            return latest | {"stopped_by": trainer.stopped_by}
        if is_main_process:
            latest |= _score_and_report(experiment, trainer, run_log, run_dir, console)
            _save_result(run_dir, experiment, trainer, latest)
            report.print_next_commands(commands, run_dir.path, experiment.transcribes)
    return latest


def _consoles(is_main_process: bool, is_temporary: bool) -> tuple[Console, Console]:
    """Returns the consoles of what a run prints and of the commands that go on with it."""
    console = Console(quiet=not is_main_process, markup=False)
    return console, Console(quiet=is_temporary or not is_main_process, markup=False)


def _checked(config: Mapping[str, Any], is_temporary: bool) -> dict[str, Any]:
    """Returns the resolved config, whose parts fit together and whose levels exist.

    A temporary run has no tracker.
    """
    resolved = resolve(config)
    if is_temporary:
        resolved["logger"] = DEFAULT
    check_logger(resolved["logger"])
    check_parts_fit(resolved)
    probe_level(resolved["probe"])
    is_checked(resolved)
    is_on(resolved, "pictures")
    return resolved


def _build_learnable(
    config: Mapping[str, Any], device: torch.device, run_dir: RunDir | None
) -> Experiment:
    """Builds an experiment, every split of which can be learned.

    Args:
        run_dir: folder of a run that is resumed, which has the tokenizer; None builds a new one.
    """
    tokenizer = run_dir.load_tokenizer() if run_dir else None
    experiment = build_experiment(config, device, tokenizer)
    train = experiment.loader("train")
    train.load_sounds()
    for split in train.dataset.splits:
        check_learnable(experiment, split)
    return experiment


def training_hooks(
    run_dir: RunDir, experiment: Experiment, plans: Sequence[Sequence[int]] = ()
) -> list[Hook]:
    """Builds the hooks of every process: reports, evaluations, checkpoints, plans to repeat."""
    dev = experiment.loader("dev")
    hooks: list[Hook] = [
        ReportMetrics(),
        StopOnDivergence(),
        EvaluateOnDev(dev.eval_batches, dev.n_eval_batches()),
        SaveCheckpoints(run_dir),
    ]
    # after the evaluation of a step, as the trainer plans
    return [*hooks, FollowPlans(plans)] if plans else hooks


def monitoring_hooks(
    experiment: Experiment,
    optimizer: torch.optim.Optimizer,
    settings: TrainerConfig,
    run_dir: RunDir,
    run_log: WriteRunLog,
) -> list[Hook]:
    """Builds the hooks of the first process: optimizer probe, user's hooks, run log, progress."""
    task = experiment.task
    hooks = [*build_user_hooks(), run_log, ShowProgress(task)]
    if is_on(experiment.config, "pictures"):
        hooks.append(DrawPictures(experiment.loader("dev"), run_log))
    level = probe_level(experiment.config["probe"])
    if level != "off":
        # before the run log, which writes what the probe adds to a report
        probe = OptimizerProbe(experiment.model, optimizer, level)
        hooks.insert(0, ProbeOptimizer(probe, run_dir, run_log))
    return hooks


def _load_pretrained(experiment: Experiment) -> str | None:
    """Loads the weights of a frontend that begins with those of a folder; says which."""
    frontend = experiment.model.frontend
    return frontend.load_pretrained() if isinstance(frontend, StartsPretrained) else None


def _initialize(experiment: Experiment) -> Transfer | None:
    """Loads the weights of `init_from`, if it is set."""
    source = experiment.config["init_from"]
    only = experiment.config["finetune"]["only"]
    if not source and only:
        raise UserError("finetune.only needs a run whose weights are loaded: init_from=RUN")
    if not source:
        return None
    return initialize_from(experiment.model, experiment.tokenizer, source, only)


def _open_folder(
    stack: contextlib.ExitStack, run_dir: RunDir, run_log: WriteRunLog, resume: bool
) -> None:
    """Locks the folder of a run, and closes its log at the end, with the error that ends it."""
    stack.enter_context(run_dir.lock(resume))
    stack.enter_context(contextlib.closing(run_log))
    stack.push(run_log.log_error)


def _print_stopped(console: Console, trainer: Trainer, run_dir: RunDir) -> None:
    command = format_command("train", f"resume={run_dir}")
    message = f"stopped at step {trainer.step} and saved; to continue:\n  {command}"
    console.print(message, soft_wrap=True)


def _begin(
    console: Console,
    experiment: Experiment,
    trainer: Trainer,
    run_log: WriteRunLog,
    transfer: Transfer | None,
    pretrained: str | None,
) -> None:
    """Writes the config and the identity of a run, checks its data, and prints an overview."""
    run_dir = run_log.run_dir
    run_dir.save_setup(experiment.config, experiment.tokenizer)
    _save_identity(run_dir, experiment.config)
    check_data(experiment, run_dir)
    _print_overview(console, experiment, trainer, run_dir)
    if pretrained:
        console.print(pretrained, soft_wrap=True)
        run_log.notes.append(pretrained)
    if transfer:
        console.print(transfer.table())
        run_log.notes.append(transfer.summary())


def _restore(trainer: Trainer, run_dir: RunDir, trust_edits: bool) -> None:
    """Restores the last checkpoint, and removes the run's scores, which will be outdated."""
    saved = checkpoint.load(run_dir.require_checkpoints())
    load_weights(trainer.model, saved, run_dir)  # raises one sentence for another model
    trainer.load_state_dict(saved, trust_edits)
    if trainer.is_main_process:
        run_dir.warn_of_edited_logs(trainer.step)
        run_dir.remove_evaluations()


def _save_identity(run_dir: RunDir, config: Mapping[str, Any]) -> None:
    """Writes the identity of the run; a warning names code that has changed since it began."""
    current = identity(config)
    earlier = read_code(run_dir)
    if earlier:
        changed = changed_files(earlier, current["code"])
        if changed:
            log.warning("the code has changed since this run began: %s", list_files(changed))
    run_dir.write_files({run_dir.identity_file: json.dumps(current, indent=1) + "\n"})


def _save_result(
    run_dir: RunDir, experiment: Experiment, trainer: Trainer, metrics: Mapping[str, float]
) -> None:
    """Writes the result of a run that is trained and scored, with what it has cost.

    The cost is the time of its steps in seconds, the FLOPs of a pass in evaluation per second of
    audio or per token, and the peak memory in bytes.
    """
    result = {
        "step": trainer.step,
        "score": experiment.task.cost(trainer.best_score),
        "seconds": trainer.seconds,
        "flops": report.flops_per_unit(experiment),
        "unit": experiment.loader("train").dataset.modality.unit,
        "memory": peak_memory(trainer.device),
        "device": describe_device(trainer.device),
        "plans": trainer.plans,
        "check": "on" if is_checked(experiment.config) else "off",
        "metrics": dict(metrics),
    }
    files.write_atomic(run_dir.result_file, json.dumps(result, indent=1, default=float) + "\n")


def _print_overview(
    console: Console, experiment: Experiment, trainer: Trainer, run_dir: RunDir
) -> None:
    """Prints the layers where they differ, the parts with their cost, and the parameter groups."""
    config = experiment.config
    tables = [layer_table(config)] if config["model"].get("layers") else []
    tables.append(report.model_table(experiment))
    tables.append(report.param_group_table(trainer.optimizer, run_dir.param_groups_file))
    console.print(Group(*tables))


def _score_and_report(
    experiment: Experiment,
    trainer: Trainer,
    run_log: WriteRunLog,
    run_dir: RunDir,
    console: Console,
) -> dict[str, float]:
    """Scores the best weights on the other splits, and prints and logs the scores by tag."""
    # test splits
    splits = experiment.loader("train").dataset.splits
    others = [split for split in splits if split not in ("train", "dev")]
    evaluations = _score_best_weights(experiment, run_dir, others)
    scores = {}
    for split, evaluation in evaluations.items():
        for name, value in evaluation.metrics.items():
            scores[f"{split}/{name}"] = value
    pictures = trainer.hook(DrawPictures)
    if pictures:
        pictures.finish(experiment.task, experiment.model, trainer.step)
    # for TensorBoard, and for the terminal
    run_log.finish(scores, trainer.step)
    report.print_scores(console, evaluations)
    return scores


def _score_best_weights(
    experiment: Experiment, run_dir: RunDir, splits: Iterable[str]
) -> dict[str, Evaluation]:
    """Scores the weights that were best on dev.

    Raises:
        UserError: a recording cannot be decoded; the trained run is saved.
    """
    # the last weights, which are overwritten, are not needed any more
    saved = checkpoint.load(run_dir.require_checkpoints(), "best")
    load_weights(experiment.model, saved, run_dir)
    try:
        return score(experiment, run_dir, splits, describe_weights(saved))
    except UserError as error:
        command = format_command("evaluate", str(run_dir))
        raise UserError(
            f"{error}; the run is trained and saved, {command} scores it once that is fixed"
        ) from error
