"""Whole runs killed at random moments: scripts/torture runs [N] [SEED] (default: 200 and 0).

Runs of eight configurations are killed and resumed until they end, with N kills in all. Each must
end as the run of its configuration that nobody disturbs: weights, state of the optimizer, random
generators and reported losses, bit for bit. Status 1 if one does not, or does not resume.
"""

import importlib
import itertools
import json
import os
import random
import shlex
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from famx.config.composition import compose_config
from famx.config.schema import register_schemas, to_plain
from famx.data._example import write_corpus
from famx.experiment.run import run
from famx.training import checkpoint
from famx.training.loader_config import LoaderConfig
from famx.training.run_dir import RunDir
from famx.training.trainer_config import TrainerConfig

# imported before the runs are forked, so that most kills hit their training
STARTUP = (
    *("av", "matplotlib.pyplot", "pandas", "pyarrow.parquet", "torchaudio", "torch._dynamo"),
    "torch.utils.tensorboard",
)
# of every run
COMMON = """\
model.d_model=16 model.n_heads=2 model.n_layers=1 trainer.device=cpu trainer.threads=1
trainer.max_steps=40 trainer.eval_every=10 trainer.save_every=5 trainer.log_every=5"""
TEXT = "task=lm data=text data.block=32"
SPEECH = "task=ctc data=manifest task.vocab_size=0 loader.batch_seconds=4"
WINDOW = "spectrum=temporal spectrum.window=24 spectrum.every=1"
CONFIGURATIONS = (
    f"{TEXT} optim=adamw layer.dropout=0.2",
    f"{TEXT} optim=fam optim.fam_start_step=5 probe=full",
    f"{TEXT} optim=fam_adamw momentum=fam momentum.start_step=5 {WINDOW}",
    f"{TEXT} optim=muon trainer.ema=0.9",
    f"{TEXT} model=worm optim=fam_maxfactor trainer.accumulate=2",
    f"{SPEECH} optim=adamw loader.workers=1",
    f"{SPEECH} model=myelinated optim=fam",
    f"{SPEECH} frontend=log_mel frontend.normalize=global optim=lookahead",
)


# of one run; then it trains to its end
MAX_KILLS = 8


class Undisturbed(NamedTuple):
    """A run that was not killed: its config, its folder, and the seconds that it took."""

    config: dict[str, Any]
    folder: Path
    seconds: float


def main(words: Sequence[str]) -> int:
    """Prints each chain of kills; returns 1 if a run differs or does not resume."""
    n_kills, seed = (*map(int, words), *(200, 0)[len(words) :])
    rng = random.Random(seed)
    for module in STARTUP:
        importlib.import_module(module)
    register_schemas(trainer=TrainerConfig, loader=LoaderConfig)
    n_done = 0
    n_runs = 0
    faults = []
    undisturbed: dict[str, Undisturbed] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "corpus")
        (folder / "text.txt").write_text("to be or not to be that is the question " * 99)
        for text in itertools.cycle(CONFIGURATIONS):
            if n_done >= n_kills:
                break
            if text not in undisturbed:
                undisturbed[text] = _undisturbed_run(folder, text, len(undisturbed))
            reference = undisturbed[text]
            limit = min(MAX_KILLS, n_kills - n_done)
            kills, fault = _kill_and_resume(reference, folder / "disturbed", limit, rng)
            fault = fault or _difference(reference.folder, folder / "disturbed")
            n_done += kills
            n_runs += 1
            print(f"{n_done} kills, run {n_runs}: {fault or 'equal'}", flush=True)
            if fault:
                faults.append(f"{text}: {fault}")
            shutil.rmtree(folder / "disturbed")
    print(f"{n_done} kills in {n_runs} runs: {len(faults)} runs differ or do not resume")
    for fault in faults:
        print(fault)
    return int(bool(faults))


def _undisturbed_run(folder: Path, text: str, number: int) -> Undisturbed:
    """Trains a configuration to its end.

    Raises:
        RuntimeError: it cannot be trained.
    """
    path = f"path={folder / 'text.txt'}" if text.startswith(TEXT) else f"root={folder}/corpus"
    config = to_plain(compose_config([], shlex.split(f"{COMMON} {text} data.{path}")))
    target = folder / f"undisturbed{number}"
    started = time.monotonic()
    status = _wait(_start(config, target, resume=False))
    if status:
        raise RuntimeError(f"{text} ends with status {status}: {_log_of(target).read_text()}")
    return Undisturbed(config, target, time.monotonic() - started)


def _kill_and_resume(
    undisturbed: Undisturbed, folder: Path, n_kills: int, rng: random.Random
) -> tuple[int, str]:
    """Trains with kills at random moments; returns their number, and what is wrong."""
    n_done = 0
    while True:
        # a run that has not saved anything begins anew
        resume = any(folder.glob("checkpoints/step-*"))
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        process = _start(undisturbed.config, folder, resume)
        delay = rng.uniform(0.05, 1) * undisturbed.seconds if n_done < n_kills else None
        status = _wait(process, delay)
        if status is not None:
            return n_done, f"status {status}: {_log_of(folder).read_text()}" if status else ""
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        n_done += 1


def _start(config: dict[str, Any], folder: Path, resume: bool) -> int:
    """Starts a run in a process of its own session; its output goes to a file."""
    process = os.fork()
    if process:
        return process
    os.setsid()
    with open(_log_of(folder), "w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    try:
        run(config, folder, resume)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _wait(process: int, seconds: float | None = None) -> int | None:
    """Returns the status of a process, or None if it has not ended in time."""
    deadline = time.monotonic() + (seconds or 600)
    while time.monotonic() < deadline:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    if seconds is None:
        raise RuntimeError("a run that nobody disturbs takes more than ten minutes")
    return None


def _difference(expected: Path, actual: Path) -> str:
    """Returns what differs between the last checkpoints and the logs of two runs, "" if nothing."""
    saved = checkpoint.load(expected / "checkpoints")
    other = checkpoint.load(actual / "checkpoints")
    for name in ("step", "score", "model", "optimizer"):
        if not _are_equal(saved[name], other[name]):
            return f"{name} differs"
    if not _are_equal(saved["trainer"]["rng"], other["trainer"]["rng"]):
        return "the random generators differ"
    return "" if _losses(expected) == _losses(actual) else "the reported losses differ"


def _are_equal(value: Any, other: Any) -> bool:
    """Returns whether two trees are the same bit for bit."""
    if isinstance(value, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(value, other)
    if isinstance(value, dict):
        if not isinstance(other, dict) or value.keys() != other.keys():
            return False
        return all(_are_equal(value[key], other[key]) for key in value)
    if isinstance(value, list | tuple):
        if type(value) is not type(other) or len(value) != len(other):
            return False
        return all(_are_equal(a, b) for a, b in zip(value, other, strict=True))
    return value == other


def _losses(folder: Path) -> dict[int, float]:
    """Returns the losses that a run has reported, by step."""
    reports = map(json.loads, RunDir(folder).metrics_file.read_text().splitlines())
    return {report["step"]: report["train/loss"] for report in reports if "train/loss" in report}


def _log_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.log")
