"""Whole trainings on a GPU: recordings in FLAC files, and text, through famx's own trainer."""

import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch

from benchmarks._gpu_timing import Page, milliseconds
from benchmarks.loop import NEVER, Prepared
from famx.experiment.build import build_optimizer
from famx.optim import parameter_groups
from famx.training.prefetch import Prefetched
from famx.training.trainer import Trainer

RATE = 16_000
WARMUP_STEPS = 120  # most shapes are captured by then
REPORT_EVERY = 1000  # steps; a default run of 330 s has some 1,300 between reports
WINDOW = 10.0  # seconds that one of several runs at once is measured over
LAYERS = 12
WIDTH = 768
BLOCK = 1024
TOKENS = 16 * BLOCK


def write_recordings(folder: Path, count: int, median_seconds: float) -> None:
    """Writes recordings of noise with log-normal lengths and random words, and their manifests."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("aeiourstlnmd"), rng.integers(2, 8))) for _ in range(200)]
    rows = []
    for i in range(count):
        seconds = float(np.clip(rng.lognormal(np.log(median_seconds), 0.4), 1.0, 20.0))
        noise = 0.1 * rng.standard_normal(int(seconds * RATE)).astype(np.float32)
        soundfile.write(folder / f"{i}.flac", noise, RATE)
        rows.append(f"{i}.flac\t{' '.join(rng.choice(words, max(1, int(2 * seconds))))}\n")
    for split in ("train", "dev", "test"):
        (folder / f"{split}.tsv").write_text("".join(rows if split == "train" else rows[:8]))


@contextmanager
def recordings(count: int, median_seconds: float) -> Iterator[str]:
    """Yields the words of a command line that read such recordings from a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        write_recordings(Path(folder), count, median_seconds)
        yield f"data.root={folder}"


def prepared(*words: str) -> Prepared:
    return Prepared(*words, "trainer.max_steps=1000000", "trainer.device=cuda")


class Run:
    """A training in progress.

    Args:
        words: words of a command line.
        log_every: steps between reports; None for the default.
        probe: level of the optimizer probe.
    """

    def __init__(self, *words: str, log_every: int | None = None, probe: str = "light"):
        self.folder = tempfile.TemporaryDirectory()
        self.prepared = prepared(*words)
        self.trainer: Trainer = self.prepared.trainer(self.folder.name, log_every, probe)
        self.waited = 0.0  # seconds spent on waiting for batches
        self.batches = self._timed(self.trainer.gradients.prefetch(self.trainer.batches(0, 0)))

    def _timed(self, batches: Iterator[Prefetched]) -> Iterator[Prefetched]:
        while True:
            started = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - started
            yield batch

    def steps(self, count: int) -> float:
        """Takes steps; returns the seconds until the device has finished them."""
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(count):
            self.trainer.advance(self.batches)
        torch.cuda.synchronize()
        return time.perf_counter() - started

    def rate(self, count: int = 200, warmup: int = WARMUP_STEPS) -> tuple[float, float]:
        """Returns the amount of data per second, and the milliseconds of a step.

        `wait_share` is then the share of this time in which the trainer waited for batches.
        """
        self.steps(warmup)
        self.waited = 0.0
        amounts: list[float] = []
        train_step = self.trainer.train_step

        def counted_step(fetched: Sequence[Prefetched]) -> None:
            amounts.append(sum(item.batch.amount for item in fetched))
            train_step(fetched)

        self.trainer.train_step = counted_step
        elapsed = self.steps(count)
        self.trainer.train_step = train_step
        self.wait_share = self.waited / elapsed
        return sum(amounts) / elapsed, 1e3 * elapsed / count


def busy_milliseconds(run: Run, steps: int = 20) -> float:
    """Returns how long the GPU computes for a step."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True
    ) as profile:
        run.steps(steps)
    microseconds = sum(event.self_device_time_total for event in profile.key_averages())
    return microseconds / 1e3 / steps


def synchronizations(run: Run, steps: int = 20) -> float:
    """Returns how often a step waits for the device, between reports."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        for _ in range(steps):
            run.trainer.advance(run.batches)
        torch.cuda.set_sync_debug_mode("default")
    messages = [str(warning.message) for warning in caught]
    places = {f"{w.filename}:{w.lineno}" for w in caught if "synchronizing" in str(w.message)}
    for place in sorted(places):
        print(f"    waits: {place}")
    return sum("called a synchronizing" in message for message in messages) / steps


def speech(page: Page) -> None:
    """Prints the rows of the default models on short recordings."""
    page.section("training on recordings of about 4 s (FLAC), default batches of 24 s")
    with recordings(300, 3.5) as data:
        for title, words, least in (
            ("transformer, adamw", ("model=transformer", "optim=adamw"), 5000),
            ("myelinated, fam", ("model=myelinated", "optim=fam"), 2500),
        ):
            words = (*words, "data=manifest", data)
            run = Run(*words)
            rate, step_ms = run.rate(REPORT_EVERY)
            graphs = sum(
                graph is not None for graph in run.trainer.gradients.passes.graphs.values()
            )
            notes = (f"{step_ms:.2f} ms a step", f"{graphs} graphs")
            page.row(f"{title}: audio s/s", rate, *notes, least=least)
            page.row(f"{title}: share of waiting for data", run.wait_share, most=0.02)
            page.row(f"{title}: ms in which the GPU computes, a step", busy_milliseconds(run))
            page.row(f"{title}: waits a step", synchronizations(run), most=0.01)
            reporting = Run(*words, log_every=REPORT_EVERY)
            _, reporting_ms = reporting.rate(REPORT_EVERY)
            note = f"a report every {REPORT_EVERY:,} steps"
            page.row(f"{title}: probe=light / off", reporting_ms / step_ms, note, most=1.02)
        eager = Run("data=manifest", data, "trainer.graphs=off")
        eager_rate, eager_ms = eager.rate(60, 60)
        page.row("transformer without graphs: audio s/s", eager_rate, f"{eager_ms:.2f} ms a step")
        check_losses(page, data)


def check_losses(page: Page, data: str, steps: int = 50) -> None:
    """Prints how much losses with graphs differ from those without, over the first steps."""
    losses = []
    for graphs in ("auto", "off"):
        words = ("data=manifest", data, "loader.shapes=4", f"trainer.graphs={graphs}")
        run = Run("model=transformer", *words, log_every=NEVER, probe="off")
        values = []
        for _ in range(steps):
            run.trainer.loss_sum.zero_()
            run.trainer.advance(run.batches)
            values.append(run.trainer.loss_sum.clone())
        losses.append(torch.stack(values))
    difference = ((losses[0] - losses[1]).abs() / losses[1].abs()).max().item()
    page.row(f"largest difference of losses in {steps} steps", difference, most=1e-3)


def conformer(page: Page) -> None:
    """Prints the row of a conformer of about 85 M parameters."""
    page.section("conformer of about 85 M parameters, recordings of about 10 s")
    sizes = ("model=conformer", "model.d_model=512", "model.n_heads=8", "model.n_layers=14")
    with recordings(300, 10.0) as data:
        words = (*sizes, "data=manifest", data, "loader.batch_seconds=300", "optim=fam_adamw")
        run = Run(*words)
        rate, step_ms = run.rate(40, 50)
        numel = sum(p.numel() for p in run.trainer.parameters)
        notes = (f"{numel / 1e6:.1f} M", f"{step_ms:.1f} ms a step")
        page.row("audio s/s", rate, *notes, least=2900)


def language_model(page: Page, matrix_rate: float) -> None:
    """Prints the rows of a language model of 12 layers of 768 channels."""
    page.section(f"language model {LAYERS} x {WIDTH}, {TOKENS:,} tokens a batch of {BLOCK}")
    sizes = (f"model.d_model={WIDTH}", "model.n_heads=12", f"model.n_layers={LAYERS}")
    words = ("task=lm", "data=text", f"data.block={BLOCK}", f"loader.batch_tokens={TOKENS}")
    words = (*words, *sizes, "layer.dropout=0", "optim=fam_adamw")
    for compiled in ("false", "true"):
        run = Run(*words, f"trainer.compile={compiled}")
        rate, step_ms = run.rate(40, 10)
        numel = sum(p.numel() for p in run.trainer.parameters)
        # products with weights, and causal attention, forward and backward
        flops = 6 * numel + 6 * LAYERS * BLOCK * WIDTH
        share = rate * flops / matrix_rate
        title = f"share of the matrix rate, compile={compiled}"
        notes = (f"{rate:,.0f} tokens/s", f"{step_ms:.1f} ms", f"{busy_milliseconds(run):.1f} busy")
        page.row(title, share, *notes, least=0.45)
    # the optimizers' share of the last step
    params = run.trainer.parameters
    for p in params:
        p.grad = torch.randn_like(p)
    for name, most in (("fam", 0.02), ("fam_adamw", 0.0), ("muon", 0.05)):
        groups = parameter_groups(run.trainer.model)
        optimizer = build_optimizer({"name": name, "lr": 1e-6}, groups)
        (elapsed,) = milliseconds(optimizer.step, calls=10, warmup=10)
        page.row(f"{name}'s share of a step", elapsed / step_ms, f"{elapsed:.2f} ms", most=most)


def packed(page: Page, runs: int = 8) -> None:
    """Prints the steps of several default runs at once, in units of one run alone."""
    page.section(f"{runs} default runs at once on this card")
    with recordings(300, 3.5) as data:
        alone = _steps_of_processes(data, 1)
        together = _steps_of_processes(data, runs)
        page.row("steps of all / steps of one alone", together / alone, least=4)


def _steps_of_processes(data: str, count: int) -> float:
    """Returns the steps per second of several runs at once, in processes of their own."""
    command = [sys.executable, str(Path(__file__).parents[1] / "benchmark"), "gpu", "child", data]
    start = partial(subprocess.Popen, command, stdout=subprocess.PIPE, text=True)
    children = [start() for _ in range(count)]
    outputs = [child.communicate()[0] for child in children]
    return sum(float(output.split()[-1]) for output in outputs)


def child(data: str) -> None:
    """Prints the steps per second of one default run, over a window that begins after 30 s."""
    begin = time.monotonic() + 30.0
    run = Run("model=transformer", "data=manifest", data, "loader.workers=1")
    while time.monotonic() < begin:
        run.steps(10)
    steps = 0
    while time.monotonic() < begin + WINDOW:
        run.steps(10)
        steps += 10
    print(steps / WINDOW)
