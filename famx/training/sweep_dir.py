"""The folder of a sweep: the order of its runs, and the runs in it."""

import logging
from collections.abc import Sequence
from pathlib import Path

from famx import files

log = logging.getLogger(__name__)

SWEEP_ORDER = "runs.txt"


def save_sweep_order(folder: Path, names: Sequence[str]) -> None:
    """Writes the order in which the runs of a sweep were named, after those of earlier commands."""
    known = sorted(read_sweep_order(folder), key=read_sweep_order(folder).__getitem__)
    ordered = [*known, *(name for name in names if name not in known)]
    files.write_atomic(folder / SWEEP_ORDER, "".join(f"{name}\n" for name in ordered))


def read_sweep_order(folder: Path) -> dict[str, int]:
    """Returns the position of each run of a sweep, by the name of its folder."""
    file = folder / SWEEP_ORDER
    if not file.is_file():
        return {}
    return {name: i for i, name in enumerate(file.read_text().splitlines())}


def find_runs(paths: Sequence[str | Path]) -> list[Path]:
    """Lists folders of runs, each once, in their order; the folder of a sweep is all its runs.

    They are in the order of its command, so that the first value of each option is the baseline. A
    warning names a run that the paths have twice.
    """
    by_target: dict[Path, Path] = {}
    for path in map(Path, paths):
        order = read_sweep_order(path)
        runs = sorted(
            (file.parent for file in path.glob("*/config.yaml")),
            key=lambda run: (order.get(run.name, len(order)), run.name),
        )
        if (path / "config.yaml").exists() or not runs:
            runs = [path]
        for run in runs:
            first = by_target.setdefault(run.resolve(), run)
            if first is not run:
                log.warning("%s is named twice, and counts once", run)
    return list(by_target.values())
