"""The training loop, over objects that are already built."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from famx.monitoring.metrics import module_images, module_metrics, observe_last_batch, to_host
from famx.monitoring.optimizer_probe import OptimizerProbe
from famx.monitoring.progress import TrainingProgress, format_score
from famx.monitoring.spectrum_log import SpectrumLog
from famx.monitoring.tensorboard import RunLog
from famx.nn.clip import clip_by_unit_norm
from famx.nn.hooks import set_observed
from famx.notation import UserError
from famx.training import checkpoint, device
from famx.training.evaluate import evaluate
from famx.validate import COUNT, DECAY, POSITIVE, THREADS, ConfigSection


@dataclass
class TrainerConfig(ConfigSection):
    """How long is trained, and what is done in between.

    Args:
        max_steps: optimizer steps; where given, max_time is not looked at.
        max_time: seconds; total_steps is fixed from the first 20 steps.
        eval_every, save_every: steps between evaluations on dev and between checkpoints; None: ten times a run.
        log_every: steps between reports; nothing is read from the device in between.
        accumulate: batches a step.
        clip: largest norm of a unit's gradient, as a share of the norm of its weights. A bound on all together leaves
            what a few loud tensors dominate as it is; without a second moment the quiet ones would hardly move. None
            leaves gradients as they are.
        patience: evaluations without a better score before the run ends.
        ema: decay of the averaged weights that are evaluated; 0 for none.
        threads: of the CPU; None leaves torch's choice.
    """

    max_steps: Annotated[int | None, COUNT] = None
    max_time: Annotated[float, POSITIVE] = 330.0
    eval_every: Annotated[int | None, COUNT] = None
    save_every: Annotated[int | None, COUNT] = None
    log_every: Annotated[int, COUNT] = 50
    accumulate: Annotated[int, COUNT] = 1
    clip_by_unit_norm: Annotated[float | None, POSITIVE] = 0.005
    patience: Annotated[int | None, COUNT] = None
    ema: Annotated[float, DECAY] = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: Annotated[int | None, THREADS] = None


TIMED_STEPS = 20  # of which the first five warm up; total_steps follows from the rest
PROVISIONAL_STEPS = 1000  # what the schedule is told until then
RESERVE = 0.07  # share of max_time left for evaluations and checkpoints


class Trainer:
    """Steps until done, reports, evaluates, saves; goes on from a checkpoint as if never stopped.

    Args:
        batches: `(epoch, position) -> endless iterator of (epoch, position, batch)`.
        dev: `() -> iterator` of the batches to evaluate on.
        schedule: `total_steps -> (step -> multiple of the peak)`.
        seed_for: `(purpose, *numbers) -> int`, the seed of a random draw.
        microscope: watches the optimizer; None for none.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Any,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], Callable[[int], float]],
        batches: Callable[[int, int], Iterator],
        dev: Callable[[], Iterator],
        seed_for: Callable[..., int],
        folder: Path,
        config: TrainerConfig,
        device: torch.device,
        microscope: OptimizerProbe | None = None,
    ):
        self.model, self.task, self.optimizer, self.config, self.device = (
            model,
            task,
            optimizer,
            config,
            device,
        )
        self.build_schedule, self.batches, self.dev = lru_cache(maxsize=1)(schedule), batches, dev
        # torch.manual_seed notes its caller for devices that are not there, which takes longer than all of `clip`
        self.random = torch.default_generator if device.type == "cpu" else torch
        self.seed_for, self.folder, self.microscope = seed_for, folder, microscope
        self.rank, self.world = device.rank(), device.world_size()
        self.averaged = (
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
            if config.ema
            else None
        )
        self.wrapped = DistributedDataParallel(model) if self.world > 1 else model
        self.penalties = [m for m in model.modules() if hasattr(m, "penalty")]
        self.feedbacks = [m for m in model.modules() if hasattr(m, "after_step")]
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.total_steps = config.max_steps
        self.step = self.epoch = self.position = self.stale = self.saved = 0
        self.best, self.last, self.seconds = float("inf"), {}, 0.0
        self.loss_sum = torch.zeros((), device=device)
        self.since = {"steps": 0, "audio": 0.0, "padding": 0.0, "seconds": 0.0}
        self.stopped_by: int | None = None
        self.screen = TrainingProgress(task.metric, quiet=self.rank > 0)
        self.pace = f"train/{'tokens' if task.unit == 'tokens' else 'audio'}_per_second"

    # the run

    def fit(self) -> dict[str, float]:
        """Trains to the end, or to a signal, after which the state is saved (`stopped_by` holds it)."""
        self.journal = RunLog(self.folder, self.step) if self.rank == 0 else None
        seen = self.microscope
        self.record = seen and SpectrumLog(self.folder, seen.names, seen.kinds, self.step)
        streaming = self.batches(self.epoch, self.position)
        with device.handle_signals(partial(setattr, self, "stopped_by")), self.screen.open():
            while not self._done() and not self.stopped_by:
                self.advance(streaming)
            if self.stopped_by and self.rank == 0:
                if self.saved != self.step:
                    self.save(None)
                self.journal.close()
        return self.last

    def advance(self, streaming: Iterator) -> None:
        """One optimizer step, and whatever is due after it."""
        started = time.perf_counter()
        batches = [next(streaming) for _ in range(self.config.accumulate)]
        self.epoch, self.position = batches[-1][0], batches[-1][1] + 1
        self._train([batch for _, _, batch in batches])
        self._time(time.perf_counter() - started)
        self._after_step()

    def finish(self, settings: dict[str, Any], results: dict[str, float]) -> None:
        """Leaves the row by which TensorBoard compares this run with others, and closes the journal."""
        self.journal.compare(settings, results, self.step)
        self.journal.close()

    def _done(self) -> bool:
        tired = self.config.patience is not None and self.stale >= self.config.patience
        return tired or (self.total_steps is not None and self.step >= self.total_steps)

    def _train(self, batches: list) -> None:
        """One optimizer step on the global batch, of which this process takes its share."""
        self.watched = (
            self.step + 1
        ) % self.config.log_every == 0 or self.step + 1 == self.total_steps
        if not self.model.training:
            self.model.train()
        if self.watched:
            set_observed(self.model, True)
        if hasattr(self.optimizer, "observed"):
            self.optimizer.observed = self.watched
        multiple = self.build_schedule(self.total_steps or PROVISIONAL_STEPS)(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * multiple
        loss_sum = self._backward(batches)
        norms = clip_by_unit_norm(self.parameters, self.config.clip or math.inf)
        self.grad_norm = norms.norm()
        if hasattr(self.optimizer, "found_inf"):  # famx's own need not read all gradients again
            self.optimizer.found_inf = self.grad_norm.isfinite().logical_not()
        with (
            self.microscope.around(self.step + 1, norms)
            if self.microscope
            else contextlib.nullcontext()
        ):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.loss_sum += loss_sum
        if self.averaged:
            self.averaged.update_parameters(self.model)
        if self.feedbacks:
            mean = self._summed(loss_sum)
            for module in self.feedbacks:
                module.after_step(mean)
        self.since["steps"] += 1
        self.since["audio"] += sum(batch.seconds for batch in batches)
        self.since["padding"] += sum(batch.padding for batch in batches) / len(batches)

    def _backward(self, batches: list) -> Tensor:
        """Gathers the gradients of this process's share of each batch; its share of the loss, penalties not counted."""
        total, loss_sum = (
            sum(self.task.count(batch) for batch in batches),
            torch.zeros((), device=self.device),
        )
        for i, batch in enumerate(batches):
            self.random.manual_seed(self.seed_for("step", self.step, i, self.rank))
            share = batch.shard(self.rank % len(batch.ids), self.world)
            weight = self.task.count(share) / total if self.rank < len(batch.ids) else 0.0
            waits = self.world > 1 and i + 1 < len(batches)
            with self.wrapped.no_sync() if waits else contextlib.nullcontext():
                with self._autocast():
                    loss = self.task.loss(self.wrapped, share.to(self.device))
                costs = [cost for m in self.penalties if (cost := m.penalty()) is not None]
                (sum(costs, loss) * (weight * self.world)).backward()
            loss_sum += loss.detach() * weight
        return loss_sum

    def _time(self, spent: float) -> None:
        """Counts the seconds of a step; after the first twenty, fixes how many there will be."""
        self.seconds += spent
        self.since["seconds"] += spent
        if self.total_steps is None:
            self.timed = [*getattr(self, "timed", []), spent]
            if len(self.timed) >= TIMED_STEPS:
                each = sum(self.timed[5:]) / len(self.timed[5:])
                steps = self.step + int(
                    (self.config.max_time * (1 - RESERVE) - self.seconds) / each
                )
                steps = torch.tensor(max(self.step, steps), device=self.device)
                if self.world > 1:
                    distributed.broadcast(steps, 0)
                self.total_steps = int(steps)

    def _after_step(self) -> None:
        tenth = max(1, (self.total_steps or 2**31) // 10)
        evaluates = self.step % (self.config.eval_every or tenth) == 0 or self._done()
        saves = evaluates or self.step % (self.config.save_every or tenth) == 0
        if self.watched:
            set_observed(self.model, False)
            self._report()
        elif saves:
            self._refuse_divergence("train", self._summed(self.loss_sum).item())
        if evaluates:
            self._evaluate()
        if self.rank == 0 and saves:
            self.save(self.last.get(f"dev/{self.task.metric}") if evaluates else None)
        if self.world > 1:
            flags = torch.tensor([self.stopped_by or 0, self.stale], device=self.device)
            distributed.all_reduce(flags, distributed.ReduceOp.MAX)
            self.stopped_by, self.stale = (int(n) for n in flags)

    def _report(self) -> None:
        """Reads from the device all that has gathered since the last report."""
        since, loss = self.since, self._summed(self.loss_sum) / self.since["steps"]
        sources = {
            "optim": getattr(self.optimizer, "metrics", {}),
            "seen": getattr(self.microscope, "metrics", {}),
        }
        train = {"train/loss": loss, "train/grad_norm": self.grad_norm}
        found = to_host(all=train | module_metrics(self.model), **sources)
        seen = {
            key.removeprefix("seen/"): found.pop(key)
            for key in list(found)
            if key.startswith("seen/")
        }
        metrics = {key.removeprefix("all/"): value for key, value in found.items()}
        if seen:
            metrics |= {
                f"microscope/{key}": value
                for key, value in self.record.add(self.step, seen).items()
            }
        metrics["train/lr"] = self.optimizer.param_groups[0]["lr"]
        metrics[self.pace] = since["audio"] / since["seconds"]
        metrics["train/padding"] = since["padding"] / since["steps"]
        self.loss_sum.zero_()
        self.since = dict.fromkeys(since, 0.0)
        if self.journal:
            self.journal.write(self.step, self.epoch, self.seconds, "train", metrics)
        self.last |= {key: value for key, value in metrics.items() if not isinstance(value, Tensor)}
        self._tell("train", f"loss {metrics['train/loss']:.3f}")
        self._refuse_divergence("train", metrics["train/loss"])

    def _refuse_divergence(self, split: str, loss: float) -> None:
        """Ends a run whose loss is not finite, before anything is saved of it."""
        if not math.isfinite(loss):
            lr = self.optimizer.param_groups[0]["lr"]
            told = (
                f"the {split} loss is {loss} at step {self.step}, with a learning rate of {lr:.3g}"
            )
            way_out = "choose a smaller optim.lr, or look for a fault in parts of your own by python -m famx.check"
            raise UserError(f"{told}: {way_out}; {self.folder} keeps the checkpoints before it")

    def _evaluate(self) -> None:
        """Decodes dev on the first process, while the others wait."""
        if self.rank == 0:
            started = time.perf_counter()
            model = self.averaged or self.model
            found = evaluate(model, self.task, observe_last_batch(model, self.dev()), self.device)
            self.seconds += time.perf_counter() - started
            metrics = {f"dev/{name}": value for name, value in found.metrics.items()}
            self.journal.write(self.step, self.epoch, self.seconds, "dev", metrics)
            self._refuse_divergence("dev", found.loss)
            self.journal.table(
                self.step, "dev/samples", ("reference", "hypothesis"), found.samples()
            )
            seen = self.record.pictures() if self.record else {}
            self.journal.draw(self.step, seen | module_images(model))
            self.last |= metrics
            score = metrics[f"dev/{self.task.metric}"]
            self.stale, self.best = (0, score) if score < self.best else (self.stale + 1, self.best)
            self._tell(
                "dev",
                "  ".join(
                    f"{name} {format_score(name, value)}" for name, value in found.metrics.items()
                ),
            )

    # its state

    def save(self, score: float | None) -> None:
        """Writes a checkpoint with all that resuming needs."""
        keys = (
            "total_steps",
            "epoch",
            "position",
            "stale",
            "best",
            "last",
            "seconds",
            "since",
            "loss_sum",
        )
        trees = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.averaged:
            trees["averaged"] = self.averaged.state_dict()
        if self.microscope:
            trees["microscope"] = self.microscope.state_dict()
            self.record.write()
        state = {key: getattr(self, key) for key in keys} | {"rng": checkpoint.rng_state()}
        checkpoint.save(self.folder / "checkpoints", self.step, score, **trees, trainer=state)
        self.saved = self.step

    def restore(self, saved: dict[str, Any]) -> None:
        """Goes on from what `checkpoint.load` read. A `max_steps` in the config replaces the saved total.

        Raises:
            UserError: it is less than what has been trained.
        """
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.averaged:
            self.averaged.load_state_dict(saved["averaged"])
        if self.microscope and "microscope" in saved:
            self.microscope.load_state_dict(saved["microscope"])
        state = saved["trainer"]
        checkpoint.set_rng_state(state.pop("rng"))
        self.step = saved["step"]
        for key, value in state.items():
            setattr(self, key, value)
        self.loss_sum = self.loss_sum.to(self.device)
        self.total_steps = self.config.max_steps or self.total_steps
        if self.total_steps is not None and self.total_steps < self.step:
            raise UserError(
                f"trainer.max_steps={self.total_steps} is less than the {self.step} steps already trained"
            )

    # small things

    def _autocast(self) -> Any:
        low = self.config.precision == "bf16" or (
            self.config.precision == "auto" and self.device.type == "cuda"
        )
        return torch.autocast(self.device.type, torch.bfloat16, enabled=low)

    def _summed(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        value = value.clone()
        if self.world > 1:
            distributed.all_reduce(value)
        return value

    def _tell(self, split: str, text: str) -> None:
        so_far = self.since["audio"] / max(self.since["seconds"], 1e-9)
        rate = self.last.get(self.pace, so_far)
        self.screen.tell(split, text, self.step, self.total_steps, rate, self.seconds, self.best)
