"""The training loop: takes optimizer steps with the objects of a run; the rest is hooks."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from famx.nn.clip import clip_by_unit_norm
from famx.nn.hooks import LearnsFromLoss, SkipsNonFinite
from famx.nn.processes import sum_over_processes
from famx.seeding import rng_state
from famx.task.base import Task
from famx.training.averaging import build_average
from famx.training.device import handle_signals, rank, world_size
from famx.training.duration import StepTimer, plan_run
from famx.training.gradients import Position, StepGradients
from famx.training.hooks import EvaluateOnDev, Hook, Interval, save_if_stream_breaks
from famx.training.prefetch import Prefetched
from famx.training.restore import restore
from famx.training.trainer_config import TrainerConfig

MIN_REPORT_STEPS = 50  # between reports, if their interval is not set
PROVISIONAL_STEPS = 1000  # total steps that the schedule assumes until they are known
SAVED = (
    "total_steps",
    "eval_interval",
    "evaluation_seconds",
    "epoch",
    "position",
    "evals_without_improvement",
    "best_score",
    "latest",
    "seconds",
    "loss_sum",
    "skipped",
    "skipped_in_row",
    "plans",
)

HookType = TypeVar("HookType", bound=Hook)


@dataclass
class Trainer:
    """Takes optimizer steps until a run is done; resumes from a checkpoint bit for bit.

    Args:
        schedule: `total_steps -> (step -> multiple of the peak learning rate)`.
        batches: `(epoch, position) -> endless iterator` over `Position`s, from these on.
        seed_for: `(purpose, *index) -> int`, the seed of a random draw.
        hooks: evaluation, checkpoints, monitoring and progress, in the order they are called.
    """

    model: nn.Module
    task: Task
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int], Callable[[int], float]]
    batches: Callable[[int, int], Iterator[Position]]
    seed_for: Callable[..., int]
    config: TrainerConfig
    device: torch.device
    hooks: Sequence[Hook] = ()

    # the state of the run; `step` and what SAVED names are stored; of scores on dev lower is better
    step: int = field(default=0, init=False)
    epoch: int = field(default=0, init=False)
    position: int = field(default=0, init=False)
    total_steps: int | None = field(default=None, init=False)
    eval_interval: int | None = field(default=None, init=False)
    plans: list[list[int]] = field(default_factory=list, init=False)  # step and `Plan`
    evaluation_seconds: float = field(default=0.0, init=False)
    seconds: float = field(default=0.0, init=False)
    best_score: float = field(default=math.inf, init=False)
    evals_without_improvement: int = field(default=0, init=False)
    latest: dict[str, float] = field(default_factory=dict, init=False)
    # the state between two reports or within a step
    interval: Interval = field(default_factory=Interval, init=False)
    dev_score: float | None = field(default=None, init=False)
    stopped_by: int | None = field(default=None, init=False)
    is_report_due: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.rank = rank()
        self.world_size = world_size()
        self.is_main_process = self.rank == 0
        self.total_steps = self.config.max_steps
        # steps whose gradients are not finite are counted, and not part of the sum of losses
        self.loss_sum = torch.zeros((), device=self.device)
        self.last_loss = torch.zeros((), device=self.device)
        self.grad_norm = torch.zeros((), device=self.device)
        self.skipped = torch.zeros((), dtype=torch.long, device=self.device)
        self.skipped_in_row = torch.zeros((), dtype=torch.long, device=self.device)
        self.time_limit = self.config.time_limit
        self.timer = StepTimer(self.time_limit or math.inf)
        self.build_schedule = lru_cache(maxsize=1)(self.schedule)
        self.averaged = build_average(self.model, self.config)
        # an attribute, since checks of protocols take longer than a small step of an optimizer
        self.skipping_optimizer: SkipsNonFinite | None = None
        if isinstance(self.optimizer, SkipsNonFinite):
            self.skipping_optimizer = self.optimizer
        modules = self.model.modules()
        self.loss_learners = [module for module in modules if isinstance(module, LearnsFromLoss)]
        self.parameters = []
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
            self.parameters += group["params"]
        self.gradients = StepGradients(
            self.model, self.task, self.parameters, self.config, self.device, self.seed_for
        )

    # the run

    def fit(self) -> dict[str, float]:
        """Trains to the end, or to a signal (then `stopped_by` holds its number).

        Returns:
            The latest metrics by tag.
        """
        batches = self.gradients.prefetch(self.batches(self.epoch, self.position))
        for hook in self.hooks:
            hook.on_start(self)
        try:
            with handle_signals(self._stop), save_if_stream_breaks(self):
                while not self.is_done and not self.stopped_by:
                    self.advance(batches)
                if self.stopped_by:
                    for hook in self.hooks:
                        hook.on_stop(self)
        finally:
            for hook in self.hooks:
                hook.on_end(self)
        return self.latest

    def advance(self, batches: Iterator[Prefetched]) -> None:
        """Takes one optimizer step and performs everything that is due after it."""
        # the step itself, timed with the wait for its data
        started = time.perf_counter()
        fetched = [next(batches) for _ in range(self.config.accumulate)]
        self.epoch = fetched[-1].epoch
        self.position = fetched[-1].position + 1
        self.train_step(fetched)
        self._count_time(started)
        # evaluation, checkpoint and report, where they are due
        is_evaluated = self.is_evaluation_due
        before = self.seconds
        started = time.perf_counter()
        for hook in self.hooks:
            hook.after_step(self)
        seconds = time.perf_counter() - started
        self.seconds = before + seconds
        if is_evaluated:
            self.evaluation_seconds = seconds
        # the end of the run
        if self.world_size > 1:
            self._agree_on_stop()
        if self.time_limit is not None and not self.is_done:
            self._fit_time(self.time_limit, is_evaluated)

    def train_step(self, fetched: Sequence[Prefetched]) -> None:
        """Takes one optimizer step on the global batch; this process computes its share of it."""
        next_step = self.step + 1
        self.is_report_due = next_step % self.report_every == 0 or next_step == self.total_steps
        if not self.model.training:
            self.model.train()
        for hook in self.hooks:
            hook.before_step(self)
        self._set_learning_rate()
        # gradients
        loss_sum = self.gradients(fetched, self.step)
        grad_norms = clip_by_unit_norm(self.parameters, self.config.unit_clip or math.inf)
        self.grad_norm = grad_norms.norm()
        is_skipped = self.grad_norm.isfinite().logical_not()
        if self.skipping_optimizer:
            # all gradients have been read for their norms, so the optimizer need not read them
            self.skipping_optimizer.found_inf = is_skipped
        # update
        for hook in self.hooks:
            hook.before_optimizer_step(self, grad_norms)
        self.optimizer.step()
        for hook in self.hooks:
            hook.after_optimizer_step(self)
        self._release_gradients()
        self.step += 1
        self._count_loss(loss_sum, is_skipped)
        batches = [item.batch for item in fetched]
        self.interval.add(batches, sum(map(self.task.throughput, batches)))
        # modules with learning rules
        if self.loss_learners:
            mean_loss = sum_over_processes(loss_sum)
            # a loss that is not finite would destroy what they have learned
            self.last_loss = torch.where(is_skipped, self.last_loss, mean_loss)
            for module in self.loss_learners:
                module.after_step(self.last_loss)
        # the average, with the buffers that these rules have changed
        if self.averaged:
            self.averaged.add(self.model, self.step, self.total_steps)

    def _count_loss(self, loss_sum: Tensor, is_skipped: Tensor) -> None:
        """Adds the loss of a step, or counts it as one whose gradients are not finite."""
        self.loss_sum += loss_sum.masked_fill(is_skipped, 0.0)
        self.skipped += is_skipped
        self.skipped_in_row.add_(1).mul_(is_skipped)

    def _set_learning_rate(self) -> None:
        schedule = self.build_schedule(self.total_steps or PROVISIONAL_STEPS)
        multiple = schedule(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * multiple

    def _release_gradients(self) -> None:
        # the optimizer's zero_grad takes longer than a small step on a GPU
        for p in self.parameters:
            p.grad = None

    def hook(self, kind: type[HookType]) -> HookType | None:
        """Returns the first hook of a class, None without one."""
        for hook in self.hooks:
            if isinstance(hook, kind):
                return hook
        return None

    # the end of the run, and the events that are due

    @property
    def is_done(self) -> bool:
        patience = self.config.patience
        if patience is not None and self.evals_without_improvement >= patience:
            return True
        return self.total_steps is not None and self.step >= self.total_steps

    @property
    def report_every(self) -> int:
        """Steps between reports."""
        hundredth = (self.total_steps or 0) // 100
        return self.config.log_every or max(MIN_REPORT_STEPS, hundredth)

    @property
    def is_evaluation_due(self) -> bool:
        return self._is_due(self.config.eval_every)

    @property
    def is_save_due(self) -> bool:
        return self.is_evaluation_due or self._is_due(self.config.save_every)

    @property
    def evaluated_model(self) -> nn.Module:
        """The averaged model if it has an average already, else the model."""
        if self.averaged is None or self.averaged.is_empty:
            return self.model
        average: nn.Module = self.averaged.module  # decoders call methods of the model itself
        return average

    def _is_due(self, every: int | None) -> bool:
        tenth = max(1, (self.total_steps or 2**31) // 10)
        return self.step % (every or self.eval_interval or tenth) == 0 or self.is_done

    def _count_time(self, started: float) -> None:
        """Counts the wall time of a step; the device is finished where the time is read."""
        is_read = self.eval_interval is None or self.is_evaluation_due
        if self.time_limit is not None and is_read and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - started
        self.seconds += seconds
        self.interval.seconds += seconds
        self.timer.add(seconds, self.gradients.is_steady)

    def _fit_time(self, limit: float, is_evaluated: bool) -> None:
        """Sets the number of steps once it is known, and corrects it after evaluations."""
        is_first = self.eval_interval is None
        due = torch.tensor([is_first and self.timer.is_ready(self.seconds), self._is_late(limit)])
        due = self._from_first_process(due)
        if due[1]:
            # one more step, which is reported and evaluated as the last
            self.total_steps = self.step + 1
        elif due[0] or (is_evaluated and not is_first):
            self._plan(limit)
        else:
            return
        self.plans.append([self.step, self.total_steps or 0, self.eval_interval or 0])

    def _is_late(self, limit: float) -> bool:
        return self.seconds + self.evaluation_seconds >= limit

    def _plan(self, limit: float) -> None:
        """Plans the rest of the run; all processes use the plan of the first."""
        hook = self.hook(EvaluateOnDev)
        if self.evaluation_seconds == 0 and hook is not None and self.is_main_process:
            self.evaluation_seconds = hook.estimate_seconds(self)
        plan = plan_run(
            self.step,
            limit - self.seconds,
            self.timer.restart(),
            self.evaluation_seconds,
            self.config.eval_every or self.eval_interval,
            self.config.max_steps,
        )
        agreed = self._from_first_process(torch.tensor(plan))
        self.total_steps, self.eval_interval = (int(value) for value in agreed)

    # several processes

    def _from_first_process(self, values: Tensor) -> Tensor:
        if self.world_size == 1:
            return values
        on_device = values.to(self.device, torch.long)
        distributed.broadcast(on_device, 0)
        return on_device.cpu()

    def _agree_on_stop(self) -> None:
        """Stops all processes if one received a signal or the first one ran out of patience."""
        flags = torch.tensor(
            [self.stopped_by or 0, self.evals_without_improvement], device=self.device
        )
        distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        self.stopped_by, self.evals_without_improvement = (int(flag) for flag in flags)

    def _stop(self, signal_number: int) -> None:
        self.stopped_by = signal_number

    # checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that resuming needs, a tree for each file of the checkpoint."""
        trees = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.averaged:
            trees["averaged"] = self.averaged.state_dict()
        for hook in self.hooks:
            if hook.state_name:
                trees[hook.state_name] = hook.state_dict()
        state = {name: getattr(self, name) for name in SAVED}
        state["interval"] = vars(self.interval)
        trees["trainer"] = state | {"rng": rng_state()}
        return trees

    def load_state_dict(self, saved: dict[str, Any], trust_edits: bool = False) -> None:
        """Restores what `checkpoint.load` read.

        Args:
            trust_edits: whether options of the optimizer replace those of the checkpoint.

        Raises:
            UserError: the checkpoint does not fit this run, or `max_steps` of the config is less
                than the number of steps already trained.
        """
        restore(self, saved, trust_edits)
