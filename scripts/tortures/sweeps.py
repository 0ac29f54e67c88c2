"""Sweeps of 12 runs that are killed at random moments and repeated: N kills, then a comparison."""

import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from famx.training import checkpoint

TEXT = """\
task=lm data=text data.block=32 model.d_model=16 model.n_heads=2 model.n_layers=1 trainer.device=cpu
trainer.max_steps=60 trainer.eval_every=20 trainer.save_every=10 trainer.threads=1 sweep.jobs=2"""
VICTIMS = ("run", "sweep", "sweep with SIGTERM", "all")


def main(words: Sequence[str]) -> int:
    """Kills a sweep N times, and compares its runs with those of an undisturbed sweep."""
    n_kills = int(words[0]) if words else 10
    rng = random.Random(int(words[1]) if len(words) > 1 else 0)
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = Path(folder) / "undisturbed"
        started = time.monotonic()
        _start(undisturbed).wait()
        seconds = time.monotonic() - started
        disturbed = Path(folder) / "disturbed"
        for number in range(n_kills):
            victim = rng.choice(VICTIMS)
            delay = rng.uniform(0.1, 0.5) * seconds
            print(f"kill {number + 1} of {n_kills}: {victim} after {delay:.1f} s", flush=True)
            _disturb(disturbed, victim, delay)
        status = _start(disturbed).wait()
        different = [
            run.name
            for run in undisturbed.glob("seed=*")
            if not _are_equal(run, disturbed / run.name)
        ]
    print(f"{n_kills} kills: status {status}, {len(different)} of 12 runs differ {different}")
    return 1 if different or status else 0


def _start(folder: Path) -> subprocess.Popen:
    """Starts a sweep in a session of its own."""
    command = [sys.executable, "-m", "famx.train", "-m", *shlex.split(TEXT), "seed=range(0,12)"]
    with open(os.devnull, "w") as null:
        return subprocess.Popen(
            [*command, f"hydra.sweep.dir={folder}"],
            stdout=null,
            stderr=null,
            start_new_session=True,
        )


def _disturb(folder: Path, victim: str, delay: float) -> None:
    """Starts the sweep, and kills a part of it unless it has ended before."""
    process = _start(folder)
    try:
        process.wait(delay)
        return
    except subprocess.TimeoutExpired:
        pass
    descendants = _descendants(process.pid)
    if victim == "run":
        for pid in descendants[-1:]:
            os.kill(pid, signal.SIGKILL)
    elif victim == "sweep with SIGTERM":
        process.terminate()
    else:
        process.kill()
        for pid in descendants if victim == "all" else ():
            os.kill(pid, signal.SIGKILL)
    process.wait()
    # runs without a sweep save and end; those that are killed are gone
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in descendants):
        if time.monotonic() > deadline:
            raise RuntimeError("a run goes on without its sweep")
        time.sleep(0.1)


def _descendants(pid: int) -> list[int]:
    """Returns the processes that a process has started, and those that these have started."""
    children = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        children += [int(child) for child in task.read_text().split()]
    return children + [grandchild for child in children for grandchild in _descendants(child)]


def _are_equal(run: Path, other: Path) -> bool:
    """Returns whether the last weights of two runs are the same bit for bit."""
    weights = checkpoint.load(run / "checkpoints")["model"]
    others = checkpoint.load(other / "checkpoints")["model"]
    return all(tensor.equal(others[name]) for name, tensor in weights.items())
