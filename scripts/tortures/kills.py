"""Processes killed while they save: scripts/torture kills [N] [SEED] (default: 400 and 0).

Half of the kills hit a save of a new step, half one of a step that exists. After each, a complete
checkpoint must load, with the weights before or after the save. Status 1 if one is lost.
"""

import collections
import logging
import os
import random
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from famx.notation import UserError
from famx.training import checkpoint


def weights_of(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((50_000,), value)}


def save_and_kill(folder: Path, step: int, seconds: float) -> None:
    """Saves a step in another process, and kills that after some time."""
    child = os.fork()
    if child == 0:
        checkpoint.save(folder, step, 0.5, model=weights_of(2.0))
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def outcome_of(folder: Path) -> str:
    """Returns `old` or `new` by the weights that load, or what is wrong with them."""
    try:
        weights = checkpoint.load(folder)["model"]["w"]
    except UserError:
        return "lost"
    for name, value in (("old", 1.0), ("new", 2.0)):
        if torch.equal(weights, weights_of(value)["w"]):
            return name
    return "mixed"


def main(words: Sequence[str]) -> int:
    """Prints the outcomes; returns 1 if a checkpoint is lost or mixed."""
    n_kills, seed = (*map(int, words), *(400, 0)[len(words) :])
    logging.getLogger("famx").setLevel(logging.ERROR)
    rng = random.Random(seed)
    outcomes: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as name:
        started = time.perf_counter()
        checkpoint.save(Path(name) / "timed", 1, 0.5, model=weights_of(1.0))
        duration = time.perf_counter() - started
        for i in range(n_kills):
            folder = Path(name) / str(i)
            checkpoint.save(folder, 1, 0.5, model=weights_of(1.0))
            step = 1 + i % 2
            save_and_kill(folder, step, rng.uniform(0, 2 * duration))
            outcomes[f"{('existing', 'new')[step - 1]} step: {outcome_of(folder)}"] += 1
    for kind, count in sorted(outcomes.items()):
        print(f"{kind} {count:,}")
    return int(any(kind.endswith(("lost", "mixed")) for kind in outcomes))
