"""Damaged checkpoints and files of runs: scripts/torture checkpoints [N] [SEED] (2,000 and 0).

N mutants of the files of a checkpoint, and half as many of the other files that a run is built
from and continues, are made by flipped bits, truncation and deletion. Each must be refused or
warned of in a sentence. Status 1 if one is accepted or ends in a traceback.
"""

import collections
import json
import logging
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from famx.data._tokenizers import byte_tokenizer
from famx.notation import UserError
from famx.registry import ROOMS
from famx.seeding import rng_state
from famx.training import checkpoint
from famx.training.run_dir import RunDir


def build_run(path: Path) -> RunDir:
    """Writes a run with one checkpoint."""
    run_dir = RunDir(path)
    run_dir.checkpoints.mkdir(parents=True)
    sections = {name: {"name": "none"} for name in (*ROOMS, "model", "trainer", "loader")}
    run_dir.save_setup({"seed": 0} | sections, byte_tokenizer())
    records = (run_dir.data_file, run_dir.recordings_file, run_dir.identity_file)
    run_dir.write_files({file: json.dumps({"a": {"b": 9 * "c"}}) for file in records})
    run_dir.metrics_file.write_text('{"step": 7, "train/loss": 0.5}\n')
    run_dir.param_groups_file.write_text("kind\ttensors\n")
    weights = {"w": torch.randn(64), "b": torch.randn(8)}
    state = {"rng": rng_state(), "seconds": 1.5}
    checkpoint.save(run_dir.checkpoints, 7, 0.5, run_dir.digests(), model=weights, trainer=state)
    return run_dir


def damage(file: Path, rng: random.Random) -> None:
    """Flips a bit of a file, cuts it, or removes it."""
    content = bytearray(file.read_bytes())
    kind = rng.choice(("flip", "flip", "flip", "cut", "remove"))
    if kind == "remove":
        file.unlink()
    elif kind == "cut":
        file.write_bytes(content[: rng.randrange(len(content))])
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)


def outcome_of(attempt: Callable[[], object]) -> str:
    """Returns `refused`, `accepted`, or the class of an error that is no sentence."""
    try:
        attempt()
    except UserError:
        return "refused"
    except Exception as error:
        return type(error).__name__
    return "accepted"


def torture(
    files: Sequence[Path], attempt: Callable[[], object], n_mutants: int, rng: random.Random
) -> collections.Counter[str]:
    """Damages one file at a time, and counts the outcomes."""
    outcomes: collections.Counter[str] = collections.Counter()
    if outcome_of(attempt) != "accepted":
        raise RuntimeError("files without damage are refused")
    for _ in range(n_mutants):
        file = rng.choice(files)
        content = file.read_bytes()
        damage(file, rng)
        outcomes[outcome_of(attempt)] += 1
        file.write_bytes(content)
    return outcomes


def read_files(run_dir: RunDir) -> None:
    """Reads the files of a run as commands do.

    Raises:
        UserError: one is missing or damaged; where commands warn, by `RaiseWarnings`.
    """
    run_dir.require_unedited("--trust-edits")
    run_dir.load_tokenizer()
    if not run_dir.config_file.exists():
        run_dir.load_config()
    for file in (run_dir.data_file, run_dir.recordings_file, run_dir.identity_file):
        run_dir.read_record(file)
    run_dir.warn_of_edited_logs(7)


class RaiseWarnings(logging.Handler):
    """Raises warnings as UserErrors, so that they count as sentences."""

    def emit(self, record: logging.LogRecord) -> None:
        raise UserError(record.getMessage())


def main(words: Sequence[str]) -> int:
    """Prints the outcomes; returns 1 if one is neither a sentence nor harmless."""
    n_mutants, seed = (*map(int, words), *(2000, 0)[len(words) :])
    logging.getLogger("famx").setLevel(logging.ERROR)
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        run_dir = build_run(Path(folder) / "run")

        inside = sorted((run_dir.checkpoints / "step-7").iterdir())
        results = {
            "checkpoints": torture(
                inside, lambda: checkpoint.load(run_dir.checkpoints), n_mutants, rng
            ),
        }
        logging.getLogger("famx").addHandler(RaiseWarnings(logging.WARNING))
        logging.getLogger("famx").setLevel(logging.WARNING)
        outside = sorted(file for file in run_dir.path.iterdir() if file.is_file())
        results["files of the run"] = torture(
            outside, lambda: read_files(run_dir), n_mutants // 2, rng
        )
        logging.getLogger("famx").handlers.pop()
    for name, outcomes in results.items():
        counts = ", ".join(f"{count:,} {kind}" for kind, count in outcomes.most_common())
        print(f"{name}: {counts}")
    return int(any(outcomes.keys() != {"refused"} for outcomes in results.values()))
