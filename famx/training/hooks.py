"""Hooks: what a training run does in addition to its steps, as classes that react to events."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from famx.nn.batch import Batch
from famx.nn.hooks import observe_last_batch
from famx.nn.processes import sum_over_processes
from famx.notation import StreamError, UserError
from famx.training import checkpoint
from famx.training.evaluate import Evaluation, evaluate
from famx.training.run_dir import RunDir

if TYPE_CHECKING:
    from famx.training.trainer import Trainer

Metrics = dict[str, float | Tensor]

MAX_SKIPPED = 20  # steps in a row whose gradients are not finite
MAX_TRIAL = 0.05  # share of the time of a run for the trial of an evaluation


@dataclass
class Interval:
    """Steps, amount of data, padding and wall seconds since the last report."""

    steps: int = 0
    amount: float = 0.0
    padding: float = 0.0
    seconds: float = 0.0

    def add(self, batches: Sequence[Batch], amount: float) -> None:
        """Counts a step, its batches and their amount of data."""
        self.steps += 1
        self.amount += amount
        self.padding += sum(batch.padding for batch in batches) / len(batches)

    @property
    def amount_per_second(self) -> float:
        return self.amount / max(self.seconds, 1e-9)


class Hook:
    """Reacts to events of a run. The trainer calls each event on all its hooks, in their order.

    A subclass overrides the events that it needs. A hook whose state must be restored on resume has
    a `state_name`, the name of its tree in the checkpoint.
    """

    state_name: str | None = None

    def on_start(self, trainer: "Trainer") -> None:
        """Called before the first step of this process."""

    def before_step(self, trainer: "Trainer") -> None:
        """Called before the forward pass of a step, after `trainer.step` earlier steps."""

    def before_optimizer_step(self, trainer: "Trainer", grad_norms: Tensor) -> None:
        """Called after clipping; `grad_norms` (tensors,) are the norms before clipping."""

    def after_optimizer_step(self, trainer: "Trainer") -> None:
        """Called after the optimizer's step, before the gradients are released."""

    def after_step(self, trainer: "Trainer") -> None:
        """Called when a step is complete and counted in `trainer.step`."""

    def on_report(self, trainer: "Trainer", metrics: Metrics) -> None:
        """Called with the metrics of a training report; may add metrics for later hooks."""

    def on_evaluation(self, trainer: "Trainer", evaluation: Evaluation) -> None:
        """Called with an evaluation on dev; parts still hold the metrics of its last batch."""

    def on_save(self, trainer: "Trainer") -> None:
        """Called before a checkpoint is written."""

    def on_stop(self, trainer: "Trainer") -> None:
        """Called when a signal or a stream that breaks has ended the run."""

    def on_end(self, trainer: "Trainer") -> None:
        """Called last, also after an error."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def require_finite(trainer: "Trainer", split: str, loss: float) -> None:
    """Ends a run whose loss is not finite, before its weights are saved.

    Raises:
        UserError: the loss is not finite.
    """
    if math.isfinite(loss):
        return
    raise UserError(f"the {split} loss is {loss} at step {trainer.step}{_advice(trainer)}")


def _advice(trainer: "Trainer") -> str:
    """Returns the end of the message about a run that diverges."""
    lr = trainer.optimizer.param_groups[0]["lr"]
    return (
        f", with a learning rate of {lr:.3g}: choose a smaller optim.lr, or look for a fault in "
        "parts of your own with python -m famx.check; the run keeps its checkpoints of earlier "
        "steps"
    )


class StopOnDivergence(Hook):
    """Ends a run whose training diverges, before it is evaluated or saved.

    It does so if the loss is not finite, or the gradients of many steps in a row. A step whose
    gradients are not finite has no effect if the optimizer skips it, and its loss does not count.
    """

    def after_step(self, trainer: "Trainer") -> None:
        # read only where the host waits for the device anyway
        if trainer.is_save_due or trainer.is_report_due:
            skipped = int(trainer.skipped_in_row)
            if skipped >= MAX_SKIPPED:
                raise UserError(
                    f"the gradients of the last {skipped} steps are not finite at step "
                    f"{trainer.step}{_advice(trainer)}"
                )
        # a report checks the loss itself, and resets its sum
        if trainer.is_save_due and not trainer.is_report_due:
            loss = sum_over_processes(trainer.loss_sum).item()
            require_finite(trainer, "train", loss)


class EvaluateOnDev(Hook):
    """Evaluates the (averaged) model on dev, in the first process, while the others wait.

    Args:
        batches: returns the batches of dev; parts fill their metrics in the last batch.
        n_batches: number of these batches.
    """

    def __init__(self, batches: Callable[[], Iterable[Batch]], n_batches: int = 1):
        self.batches = batches
        self.n_batches = n_batches

    def estimate_seconds(self, trainer: "Trainer") -> float:
        """Returns the seconds of an evaluation, from a trial with the first batches.

        The trial is part of the time of the run, and ends early if an evaluation takes long.
        """
        limit = MAX_TRIAL * (trainer.time_limit or math.inf)
        started = time.perf_counter()
        n_read = 0

        def first_batches() -> Iterator[Batch]:
            nonlocal n_read
            for batch in self.batches():
                n_read += 1
                yield batch
                if time.perf_counter() - started > limit:
                    return

        evaluate(trainer.evaluated_model, trainer.task, first_batches(), trainer.device)
        seconds = time.perf_counter() - started
        trainer.seconds += seconds
        return seconds * self.n_batches / max(1, n_read)

    def after_step(self, trainer: "Trainer") -> None:
        if not trainer.is_evaluation_due or not trainer.is_main_process:
            return
        # evaluate; this time is part of the time of the run
        started = time.perf_counter()
        model = trainer.evaluated_model
        batches = observe_last_batch(model, self.batches())
        evaluation = evaluate(model, trainer.task, batches, trainer.device)
        trainer.seconds += time.perf_counter() - started
        # compare with the best score so far
        metrics = {f"dev/{name}": value for name, value in evaluation.metrics.items()}
        trainer.latest |= metrics
        value = metrics[f"dev/{trainer.task.selection_metric}"]
        trainer.dev_score = trainer.task.cost(value)
        improved = trainer.dev_score < trainer.best_score
        if improved and math.isfinite(evaluation.loss):
            trainer.best_score = trainer.dev_score
            trainer.evals_without_improvement = 0
        else:
            trainer.evals_without_improvement += 1
        # report
        for hook in trainer.hooks:
            hook.on_evaluation(trainer, evaluation)
        require_finite(trainer, "dev", evaluation.loss)


class FollowPlans(Hook):
    """Repeats the plans of another run, whose length depended on its time.

    Args:
        plans: step, total steps and steps between evaluations of each plan.
    """

    def __init__(self, plans: Iterable[Sequence[int]]):
        self.plans = {step: (total, interval) for step, total, interval in plans}

    def on_start(self, trainer: "Trainer") -> None:
        trainer.time_limit = None

    def after_step(self, trainer: "Trainer") -> None:
        if trainer.step in self.plans:
            total_steps, interval = self.plans[trainer.step]
            trainer.total_steps = total_steps
            trainer.eval_interval = interval or None


class SaveCheckpoints(Hook):
    """Saves checkpoints at evaluations, every `save_every` steps and on a signal.

    Args:
        run_dir: folder of the run.
    """

    def __init__(self, run_dir: RunDir):
        self.run_dir = run_dir
        self.saved_step: int | None = None

    def on_start(self, trainer: "Trainer") -> None:
        # the checkpoint from which a run resumes has its score, which must not be overwritten
        if trainer.step:
            self.saved_step = trainer.step

    def after_step(self, trainer: "Trainer") -> None:
        if trainer.is_main_process and trainer.is_save_due:
            self.save(trainer, trainer.dev_score if trainer.is_evaluation_due else None)

    def on_stop(self, trainer: "Trainer") -> None:
        if trainer.is_main_process and self.saved_step != trainer.step:
            self.save(trainer, None)

    def save(self, trainer: "Trainer", score: float | None) -> None:
        """Saves a checkpoint of the current step with its score on dev, if it was evaluated.

        Raises:
            UserError: a weight is not finite, or the disk is full.
        """
        checkpoint.require_finite_weights(trainer.model, trainer.step)
        # hooks write their logs first: on resume these are cut back to the step of the checkpoint
        for hook in trainer.hooks:
            hook.on_save(trainer)
        folder = self.run_dir.checkpoints
        digests = self.run_dir.digests()
        checkpoint.save(folder, trainer.step, score, digests, **trainer.state_dict())
        self.saved_step = trainer.step


@contextlib.contextmanager
def save_if_stream_breaks(trainer: "Trainer") -> Iterator[None]:
    """Saves the state after the last complete step, if the data cannot be reached any more.

    Raises:
        UserError: instead of the StreamError; it names the step from which the run can go on.
    """
    try:
        yield
    except StreamError as error:
        for hook in trainer.hooks:
            hook.on_stop(trainer)
        raise UserError(f"{error}; step {trainer.step} is saved, resume=RUN continues") from error
