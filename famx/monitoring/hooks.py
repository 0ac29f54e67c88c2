"""Monitoring as hooks of the trainer: reports, optimizer probe, run log, progress."""

import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from famx.config.command import printed_warnings
from famx.monitoring.metrics import (
    module_images,
    module_metrics,
    optimizer_metrics,
    to_host,
)
from famx.monitoring.optimizer_probe import OptimizerProbe
from famx.monitoring.progress import TrainingProgress, format_score
from famx.monitoring.spectrum_log import SpectrumLog
from famx.monitoring.tensorboard import RunLog
from famx.monitoring.trackers import Mirror
from famx.nn.hooks import Observed, set_observed
from famx.nn.processes import sum_over_processes
from famx.task.base import Task
from famx.training.device import world_size
from famx.training.evaluate import Evaluation
from famx.training.hooks import Hook, Interval, Metrics, require_finite
from famx.training.provenance import provenance
from famx.training.run_dir import RunDir
from famx.training.trainer import Trainer
from famx.training.tree import require_like

log = logging.getLogger(__name__)


def trial_name(folder: Path) -> str:
    """Returns the name of a run in TensorBoard: what differs first, dates last.

    TensorBoard shows the first 14 or so characters, and the folders of most runs begin with a date.
    """
    name = folder.resolve().name
    parent = folder.resolve().parent.name
    dated = re.fullmatch(r"(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)_(.+)", name)
    if dated:
        date, name = dated.groups()
        return f"{name} {date}"
    # runs of a sweep: sweeps may have runs of the same name
    return f"{name} {parent}"


def throughput_tag(task: Task) -> str:
    """Returns the tag of the amount of data trained per second, such as seconds of audio."""
    return f"train/{task.throughput_unit}_per_second"


class ReportMetrics(Hook):
    """Collects the metrics of a step where a report is due, and passes them to all hooks."""

    def before_step(self, trainer: Trainer) -> None:
        if trainer.is_report_due:
            self._set_observed(trainer, True)

    def after_step(self, trainer: Trainer) -> None:
        if not trainer.is_report_due:
            return
        # the metrics of this step; the sums of the interval start again at 0
        self._set_observed(trainer, False)
        n_steps = trainer.interval.steps
        metrics = self.collect(trainer)
        trainer.loss_sum.zero_()
        trainer.skipped.zero_()
        trainer.interval = Interval()
        for hook in trainer.hooks:
            hook.on_report(trainer, metrics)
        scalars = {tag: value for tag, value in metrics.items() if not isinstance(value, Tensor)}
        trainer.latest |= scalars
        # without any step that counts there is no loss; many such steps in a row end the run
        if scalars.get("train/skipped") != n_steps:
            require_finite(trainer, "train", scalars["train/loss"])

    def _set_observed(self, trainer: Trainer, observed: bool) -> None:
        set_observed(trainer.model, observed)
        if isinstance(trainer.optimizer, Observed):
            trainer.optimizer.observed = observed

    def collect(self, trainer: Trainer) -> Metrics:
        """Returns the metrics of the model, the optimizer and the loop, in one device copy."""
        # tensors on the device
        interval = trainer.interval
        on_device = {
            "train/loss": sum_over_processes(trainer.loss_sum) / (interval.steps - trainer.skipped),
            "train/grad_norm": trainer.grad_norm,
            "train/skipped": trainer.skipped,
        }
        on_device |= module_metrics(trainer.model)
        on_device |= optimizer_metrics(trainer.optimizer)
        # numbers on the host
        metrics = to_host(on_device)
        # most runs skip no step
        skipped = metrics["train/skipped"]
        if skipped:
            log.warning(
                "the gradients of %d of %d steps up to step %d are not finite",
                *(skipped, interval.steps, trainer.step),
            )
        else:
            del metrics["train/skipped"]
        metrics["train/lr"] = trainer.optimizer.param_groups[0]["lr"]
        metrics[throughput_tag(trainer.task)] = interval.amount_per_second
        metrics["train/padding"] = interval.padding / interval.steps
        return metrics


class ProbeOptimizer(Hook):
    """Measures the optimizer's effect on every tensor, and records it in spectrum.parquet.

    Args:
        probe: the optimizer probe.
        run_dir: folder of the run.
        run_log: receives the heat maps.
    """

    state_name = "probe"

    def __init__(self, probe: OptimizerProbe, run_dir: RunDir, run_log: "WriteRunLog"):
        self.probe = probe
        self.run_dir = run_dir
        self.run_log = run_log
        self.has_charts = False

    def on_start(self, trainer: Trainer) -> None:
        file = self.run_dir.spectrum_file
        self.spectrum_log = SpectrumLog(
            file, self.probe.names, self.probe.kinds, trainer.step, self.probe.band_names
        )

    def before_optimizer_step(self, trainer: Trainer, grad_norms: Tensor) -> None:
        self.probe.every = trainer.report_every
        self.probe.before_step(trainer.step + 1, grad_norms)

    def after_optimizer_step(self, trainer: Trainer) -> None:
        self.probe.after_step()

    def on_report(self, trainer: Trainer, metrics: Metrics) -> None:
        if not self.probe.metrics:
            return
        on_host = to_host(self.probe.metrics)
        # one value or row per tensor, so none is a plain number
        by_tensor = {name: value for name, value in on_host.items() if isinstance(value, Tensor)}
        metrics |= self.spectrum_log.add(trainer.step, by_tensor)
        if not self.has_charts:
            self.run_log.log.log_charts(self._charts())
            self.has_charts = True

    def _charts(self) -> dict[str, dict[str, list[str]]]:
        """Returns charts with the bands of each kind, and with the momentum of all kinds."""
        bands = self.spectrum_log.curves_of_bands()
        momentum = {}
        for metric, title in (("coefficient", "momentum set"), ("momentum", "momentum in effect")):
            momentum[title] = [f"probe/{metric}/{kind}" for kind in bands]
        return {"gradient bands (white noise = 1)": bands, "momentum": momentum}

    def on_evaluation(self, trainer: Trainer, evaluation: Evaluation) -> None:
        self.run_log.log.log_images(trainer.step, self.spectrum_log.images())

    def on_save(self, trainer: Trainer) -> None:
        self.spectrum_log.write()

    def state_dict(self) -> dict[str, Any]:
        return self.probe.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        require_like(state, self.probe.state_dict(), "probe")
        self.probe.load_state_dict(state)


class WriteRunLog(Hook):
    """Writes reports and evaluations to metrics.jsonl and TensorBoard, and messages to famx.log.

    Args:
        run_dir: folder of the run.
        hparams: settings by which TensorBoard compares the run with others.
        logger: a tracker that gets the settings and all curves too.

    Attributes:
        notes: messages for famx.log that it gets when training starts.
    """

    def __init__(self, run_dir: RunDir, hparams: Mapping[str, Any], logger: str = "tensorboard"):
        self.run_dir = run_dir
        self.hparams = hparams
        self.logger = logger
        self.notes: list[str] = []
        self._log: RunLog | None = None

    @property
    def log(self) -> RunLog:
        """The log of a run that has begun."""
        assert self._log is not None, "the log is opened by on_start"
        return self._log

    def on_start(self, trainer: Trainer) -> None:
        name = trial_name(self.run_dir.path)
        mirror = Mirror(self.logger, self.run_dir, name, self.hparams, is_new=trainer.step == 0)
        self._log = RunLog(self.run_dir, trainer.step, mirror)
        facts = provenance(trainer.device, world_size())
        self.run_dir.add_provenance(facts)
        for name, fact in facts.items():
            log.info("%s: %s", name, fact)
        # what was said before this log was open
        for message in (*printed_warnings(), *self.notes):
            log.info("before training: %s", message)
        # at the start, so that a run that is stopped or crashes has a row too
        self.log.log_hparams(name, self.hparams)

    def on_report(self, trainer: Trainer, metrics: Metrics) -> None:
        self.log.write(trainer.step, trainer.epoch, trainer.seconds, "train", metrics)

    def on_evaluation(self, trainer: Trainer, evaluation: Evaluation) -> None:
        metrics = {f"dev/{name}": value for name, value in evaluation.metrics.items()}
        self.log.write(trainer.step, trainer.epoch, trainer.seconds, "dev", metrics)
        header = ("reference", "hypothesis")
        self.log.log_text_table(trainer.step, "dev/samples", header, evaluation.samples())
        self.log.log_images(trainer.step, module_images(trainer.evaluated_model))
        self._log_results(trainer)

    def on_stop(self, trainer: Trainer) -> None:
        self._log_results(trainer)

    def _log_results(self, trainer: Trainer) -> None:
        """Writes what the run has reached to TensorBoard."""
        results = {"Results/training steps": float(trainer.step)}
        # infinite before the first evaluation
        if math.isfinite(trainer.best_score):
            best = trainer.task.cost(trainer.best_score)
            results[f"Results/best dev {trainer.task.selection_metric}"] = best
        self.log.log_curves(trainer.step, results)

    def finish(self, scores: Mapping[str, float], step: int) -> None:
        """Writes the scores of a complete run, by `split/metric`, to TensorBoard and famx.log."""
        self.log.log_curves(step, scores)
        results = {f"Results/{tag.replace('/', ' ')}": value for tag, value in scores.items()}
        self.log.log_curves(step, results)
        for tag, value in scores.items():
            log.info("%s %.6g", tag, value)

    def log_error(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Writes the error that ends the run, if any, to famx.log; see `ExitStack.push`."""
        if error is not None and self._log is not None:
            self._log.log_error(error)

    def close(self) -> None:
        if self._log is not None:
            self._log.close()


class ShowProgress(Hook):
    """Shows a progress bar on a terminal, and a line for each report elsewhere."""

    def __init__(self, task: Task):
        self.progress = TrainingProgress(task.selection_metric, task.throughput_unit)

    def on_start(self, trainer: Trainer) -> None:
        self.progress.start()

    def on_report(self, trainer: Trainer, metrics: Metrics) -> None:
        rate = float(metrics[throughput_tag(trainer.task)])
        self._show(trainer, "train", f"loss {metrics['train/loss']:.3f}", rate)

    def on_evaluation(self, trainer: Trainer, evaluation: Evaluation) -> None:
        scores = [f"{name} {format_score(name, x)}" for name, x in evaluation.metrics.items()]
        # there may be no report before the first evaluation
        tag = throughput_tag(trainer.task)
        rate = trainer.latest.get(tag, trainer.interval.amount_per_second)
        self._show(trainer, "dev", "  ".join(scores), rate)

    def on_end(self, trainer: Trainer) -> None:
        self.progress.stop()

    def _show(self, trainer: Trainer, split: str, text: str, rate: float) -> None:
        self.progress.report(
            split,
            text,
            step=trainer.step,
            total_steps=trainer.total_steps,
            rate=rate,
            seconds=trainer.seconds,
            best_score=trainer.task.cost(trainer.best_score),
        )
