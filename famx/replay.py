"""Trains a run again, and says where the two differ: python -m famx.replay RUN [--to FOLDER]"""

import contextlib
import json
import math
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from famx.config.command import Parser, find_override, run_command, split_parts
from famx.experiment.run import run
from famx.notation import UserError
from famx.registry import load
from famx.training import checkpoint
from famx.training.identity import changed_files, code_digests, list_files, read_code
from famx.training.run_dir import RunDir, open_run
from famx.training.tree import MALFORMED

# settings that may change on resume, and on which reports or weights depend
INFLUENTIAL = (
    "trainer.max_steps",
    "trainer.eval_every",
    "trainer.log_every",
    "trainer.patience",
    "trainer.device",
    "trainer.threads",
)
# what a report has measured with a clock
TIMES = ("seconds", "_per_second")


def main() -> int:
    """Trains the run again and compares both; returns 0 if they are the same bit for bit, else 1.

    A signal that ends the training ends the command with its status.

    Raises:
        UserError: the run is not finished, or not what it was.
    """
    parser = Parser(
        prog="python -m famx.replay",
        description="Trains a run again from its folder, and compares reports and weights.",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a finished run")
    parser.add_argument("--to", type=Path, help="folder of the new run; by default it is removed")
    parser.add_argument("overrides", nargs="*", help="famx_parts=[FILE...], if it had user's parts")
    arguments = parser.parse_args()
    parts, unknown = split_parts(arguments.overrides)
    if unknown:
        raise UserError(f"{unknown[0]} cannot be set: a run is repeated as it was trained")
    load("famx")
    run_dir = RunDir(arguments.run)
    if not run_dir.result_file.is_file():
        raise UserError(f"{run_dir} is not a finished run: there is no {run_dir.result_file.name}")
    result = json.loads(run_dir.result_file.read_text())
    open_run(arguments.run, parts, remedy="the original files")
    require_same_settings(run_dir)
    config = run_dir.load_config()
    changed = changed_files(read_code(run_dir), code_digests())
    if changed:
        print(f"the code has changed: {list_files(changed)}")
    with tempfile.TemporaryDirectory() as folder:
        replayed = RunDir(arguments.to or Path(folder) / run_dir.path.resolve().name)
        results = run(
            config, replayed.path, plans=result["plans"], is_temporary=arguments.to is None
        )
        if "stopped_by" in results:
            return 128 + results["stopped_by"]
        difference = next(differences(run_dir, replayed), None)
    if difference is None:
        print(f"{run_dir} is repeated bit for bit: {len(_reports(run_dir))} reports, all weights")
        return 0
    print(f"{run_dir} is not repeated: {difference}")
    return 1


def require_same_settings(run_dir: RunDir) -> None:
    """Checks that no resumption has changed a setting on which reports or weights depend.

    Raises:
        UserError: one has; the config holds the last value alone, so the run cannot be repeated.
    """
    starts: list[list[str]] = []
    for words in _commands(run_dir):
        for word in words if find_override("resume", words) else ():
            key = word.partition("=")[0]
            is_new = all(word not in earlier for earlier in starts)
            if is_new and (key in INFLUENTIAL or word == "trust_edits=true"):
                raise UserError(
                    f"{run_dir} was resumed with {word}, so that one training cannot repeat it: "
                    "only runs whose settings stay the same are replayed"
                )
        starts.append(words)


def _commands(run_dir: RunDir) -> Iterator[list[str]]:
    """Yields the words of each command that started a run or went on with it."""
    file = run_dir.provenance_file
    for line in file.read_text(errors="replace").splitlines() if file.is_file() else ():
        # a damaged line says nothing
        with contextlib.suppress(*MALFORMED):
            yield shlex.split(json.loads(line)["command"])


def differences(run_dir: RunDir, replayed: RunDir) -> Iterator[str]:
    """Yields what differs between two runs, in the order of their steps; then weights."""
    reports = _reports(run_dir)
    for key, report in _reports(replayed).items():
        stored = reports.pop(key, None)
        step, split = key
        if stored is None:
            yield f"there is no report of {split} at step {step} in {run_dir}"
            continue
        for tag in dict.fromkeys([*stored, *report]):
            if not _are_equal(stored.get(tag), report.get(tag)):
                yield f"step {step}, {tag}={report.get(tag)}, stored {stored.get(tag)}"
    for step, split in reports:
        yield f"there is a report of {split} at step {step} in {run_dir} alone"
    weights = checkpoint.load(run_dir.require_checkpoints())["model"]
    for name, tensor in checkpoint.load(replayed.require_checkpoints())["model"].items():
        if not tensor.equal(weights[name]):
            largest = (tensor - weights[name]).abs().max().item()
            yield f"the last weights {name} differ by up to {largest:.3g}"


def _reports(run_dir: RunDir) -> dict[tuple[int, str], dict[str, Any]]:
    """Returns the reports of a run by step and split, without what a clock has measured."""
    reports = {}
    for line in run_dir.metrics_file.read_text(encoding="utf-8").splitlines():
        report = json.loads(line)
        timeless = {tag: x for tag, x in report.items() if not tag.endswith(TIMES)}
        reports[report["step"], report["split"]] = timeless
    return reports


def _are_equal(value: object, stored: object) -> bool:
    both_nan = all(isinstance(x, float) and math.isnan(x) for x in (value, stored))
    return both_nan or value == stored


if __name__ == "__main__":
    run_command(main)
