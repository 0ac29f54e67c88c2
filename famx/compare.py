"""Tells whether an idea helped: python -m famx.compare RUN [RUN...] [--split test] [--metric wer] [--png FILE]"""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from famx.config import Parser, command, verb
from famx.folder import runs_in
from famx.notation import UserError
from famx.verdict import CONFIDENCE, UNITS, Comparison, Run, compare, read

log = logging.getLogger("famx.compare")

COLOURS = {"better": "#009E73", "worse": "#D55E00"}  # of Okabe and Ito, told apart by every eye


def table(of: Comparison) -> Table:
    """A line an arm, with the mean over its seeds, and how far seeds and intervals reach beneath."""
    shown = Table(title=of.test, title_justify="left", title_style="bold", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("settings", "seeds", "steps", "mean", "difference", "verdict"):
        shown.add_column(column, justify="left" if column in ("settings", "verdict") else "right", no_wrap=True)
    for label, arm, more in zip(of.arms, of.arms.values(), [None, *of.differences], strict=True):
        rates, steps = [run.rate for run in arm.values()], sorted({run.steps for run in arm.values()})
        mean = [of.written(np.mean(rates))]
        if len(arm) > 1:
            mean.append(f"{of.written(min(rates))} to {of.written(max(rates))}")
        taken = [f"{steps[0]:,}", *(f"to {most:,}" for most in steps[1:][-1:])]
        found = [] if more is None else [of.written(more.mean, "+")]
        if more and not np.isnan(more.low):
            found.append(f"{of.written(more.low, '+')} to {of.written(more.high, '+')}")
        cells = (label, f"{len(arm)}", "\n".join(taken), "\n".join(mean), "\n".join(found))
        shown.add_row(*cells, more.verdict if more else "")
    return shown


def notes(of: Comparison) -> Iterator[str]:
    """What has to be known beside the numbers."""
    if not of.differences:
        yield "All have the same settings, so there is nothing to compare them with."
        return
    yield f"Differences are from the first line, fewer is better. {CONFIDENCE:.0%} intervals, which hold all at once."
    if any(more.pairs == 1 for more in of.differences):
        yield "One seed does not tell how training falls out, which moves rates too: train more, seed=0,1,2."
    if len({frozenset(arm) for arm in of.arms.values()}) > 1:
        yield "Differences are of the seeds that both have, means of all that there are."
    if len({run.steps for arm in of.arms.values() for run in arm.values()}) > 1:
        yield "Not all trained for as many steps: what wins by time may lose by steps, or on another machine."


def draw(all_of: Sequence[Comparison], file: Path) -> None:
    """Draws of each test every run's rate on the left, and the differences with their intervals on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    heights = [1.2 + sum(0.35 + 0.18 * label.count("\n") for label in of.arms) for of in all_of]
    with pyplot.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "axes.titlesize": 9}):
        size, rows = (9, sum(heights)), len(all_of)
        figure, axes = pyplot.subplots(rows, 2, figsize=size, height_ratios=heights, sharey="row", squeeze=False)
        figure.set_layout_engine("constrained")
        for (left, right), of in zip(axes, all_of, strict=True):
            _draw_rates(left, of)
            _draw_differences(right, of)
        figure.savefig(file, dpi=150)
        pyplot.close(figure)


def _draw_rates(axis: Any, of: Comparison) -> None:
    for place, arm in enumerate(of.arms.values()):
        rates = of.scale * np.array([run.rate for run in arm.values()])
        axis.plot(rates, [place] * len(rates), "o", color="#0072B2", alpha=0.6, markersize=5)
        axis.plot(rates.mean(), place, "|", color="black", markersize=14)
    axis.set_yticks(range(len(of.arms)), list(of.arms))
    axis.set_ylim(len(of.arms) - 0.5, -0.5)
    axis.set(title=of.test, xlabel="each seed and their mean" + ", %" * (of.scale > 1))


def _draw_differences(axis: Any, of: Comparison) -> None:
    for place, more in enumerate(of.differences, 1):
        mean, low, high = (of.scale * value for value in more[:3])
        colour = COLOURS.get(more.verdict.partition(",")[0], "#666666")
        axis.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color=colour, capsize=3)
    axis.axvline(0, color="black", linewidth=0.8, linestyle=":")
    axis.set(title="difference from the first", xlabel="points" * (of.scale > 1))


def main() -> int:
    """Prints a table and draws a picture of each test that runs share; returns the exit status."""
    parser = Parser(prog="python -m famx.compare", description="Whether runs of other settings make fewer errors.")
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="the folder of a run or a sweep; first what others are held against"
    )
    parser.add_argument("--split", default="test", help="test, dev, or another split that they are scored on")
    parser.add_argument("--metric", choices=(*UNITS, "loss"), help="wer if not given, or loss where there are no words")
    parser.add_argument("--png", type=Path, help="where the picture goes; compare.png beside the runs if not given")
    arguments = parser.parse_args()
    split, folders = arguments.split, runs_in(arguments.runs)
    tests: dict[tuple[str, ...], list[Run]] = {}
    for folder in folders:
        if (folder / "config.yaml").is_file() and not (folder / f"scores.{split}.json").is_file():
            again = command("evaluate", str(folder), "--split", split)
            log.warning("%s is not scored on %s and left out; once it is trained, %s", folder, split, again)
            continue
        run = read(folder, split, arguments.metric)
        tests.setdefault(run.test, []).append(run)
    if not tests:
        raise UserError(f"no run here is scored on {split}")
    console, found = Console(highlight=False), [compare(runs) for runs in tests.values()]
    for of in found:
        console.print(table(of))
        console.print(*notes(of), sep="\n", soft_wrap=True)
    file = arguments.png or Path(os.path.commonpath([folder.resolve().parent for folder in folders])) / "compare.png"
    draw(found, file)
    console.print(f"picture: {file}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    verb(main)
