"""Tells whether an idea helped: python -m famx.compare RUN [RUN...] [--split test] [--metric wer] [--png FILE]"""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from famx import files
from famx.analysis.gene_effects import marginal_effects
from famx.analysis.runs import (
    ERROR_UNITS,
    Run,
    Setting,
    UnscoredError,
    group_by_setting,
    read_run,
    title,
)
from famx.analysis.significance import CONFIDENCE, Difference, differences
from famx.config.command import Parser, run_command
from famx.registry import load
from famx.training.run_dir import find_runs

log = logging.getLogger("famx.compare")

WIDTH = 88  # of the table at least, in characters
FEW = 50  # utterances, of which fewer make an interval too short
# of Okabe and Ito, told apart by every eye
COLOURS = {"better": "#009E73", "worse": "#D55E00", "not shown": "#555555", "not known": "#BBBBBB"}


class Comparison(NamedTuple):
    """All that was scored on one test; the differences are of all arms but the first."""

    title: str
    group_by_setting: list[Setting]
    differences: list[Difference]

    @property
    def runs(self) -> list[Run]:
        return [run for arm in self.arms for run in arm.runs.values()]

    @property
    def scale(self) -> int:
        """Error rates are told in percent, losses as they are."""
        return 1 if self.runs[0].metric == "loss" else 100

    def written(self, rate: float, sign: str = "") -> str:
        """A rate or, with a sign, a difference of two."""
        return f"{self.scale * rate:{sign}.{3 if self.scale == 1 else 1}f}"


def table(of: Comparison) -> Table:
    """A line an arm, with the mean over its seeds, and how far seeds and intervals reach beneath."""
    shown = Table(
        title=Text(of.title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    shown.add_column("settings", overflow="fold")
    heads = {"steps": "steps", "parameters": "params"}
    costs = [name for name in heads if len({getattr(run, name) for run in of.runs}) > 1]
    for column in (
        "seeds",
        *(heads[name] for name in costs),
        "mean" + " %" * (of.scale > 1),
        "difference",
        "verdict",
    ):
        shown.add_column(column, justify="left" if column == "verdict" else "right", no_wrap=True)
    for arm, more in zip(of.arms, [None, *of.differences], strict=True):
        rates, seeds = np.array([run.rate for run in arm.runs.values()]), [f"{len(arm.runs)}"]
        if more and more.pairs < len(rates):
            seeds.append(f"{more.pairs} shared")
        mean = [of.written(rates.mean())]
        if len(rates) > 1:
            mean.append(f"{of.written(rates.min())} to {of.written(rates.max())}")
        cells = [
            "\n".join(seeds),
            *(_span([getattr(run, name) for run in arm.runs.values()]) for name in costs),
        ]
        shown.add_row(
            Text(arm.label),
            *cells,
            "\n".join(mean),
            _difference(of, more),
            more.verdict if more else "",
        )
    return shown


def genes(of: Comparison) -> Table | None:
    """What each gene of drawn layers does for the rate; None where there are no or too few draws."""
    drawn = [arm for arm in of.arms if all(run.layers for run in arm.runs.values())]
    found = marginal_effects(drawn)
    if not found:
        return None
    shown = Table(
        title=f"what a layer adds that has, in {len(drawn)} drawn models",
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    shown.add_column("gene", overflow="fold")
    for column in ("runs", "points" if of.scale > 1 else "loss", "interval", "verdict"):
        shown.add_column(column, justify="left" if column == "verdict" else "right", no_wrap=True)
    for effect in found:
        interval = f"{of.written(effect.low, '+')} to {of.written(effect.high, '+')}"
        shown.add_row(
            Text(effect.gene),
            f"{effect.runs}",
            of.written(effect.mean, "+"),
            interval,
            effect.verdict,
        )
    return shown


def _difference(of: Comparison, more: Difference | None) -> str:
    if more is None or np.isnan(more.mean):
        return ""
    interval = (
        ""
        if np.isnan(more.low)
        else f"\n{of.written(more.low, '+')} to {of.written(more.high, '+')}"
    )
    return of.written(more.mean, "+") + interval


def _span(numbers: Sequence[int]) -> str:
    """What all have, or the least and the most."""
    least, most = (_short(number) for number in (min(numbers), max(numbers)))
    return least if least == most else f"{least}\nto {most}"


def _short(number: int) -> str:
    return f"{number:,}" if number < 100_000 else f"{number / 1e6:.2f} M"


def notes(of: Comparison) -> Iterator[str]:
    """What has to be known beside the numbers."""
    alike = {
        name: _span([getattr(run, name) for run in of.runs]) for name in ("steps", "parameters")
    }
    if told := ", ".join(f"{value} {name}" for name, value in alike.items() if "\n" not in value):
        yield f"Each: {told}."
    if not of.differences:
        yield "All have the same settings, so there is nothing to compare them with."
        return
    told = f"{CONFIDENCE:.0%} intervals, which hold all at once."
    yield f"Differences are from the first line, fewer is better. {told}"
    if any(more.pairs == 1 for more in of.differences):
        yield "One seed does not tell how training falls out, which moves rates too: train more, seed=0,1,2."
    if of.scale == 1:
        yield "Intervals of a loss know the chance of training alone, not which text was tested."
    elif len(of.runs[0].units) < FEW:
        yield f"Of fewer than {FEW} utterances intervals come out too short."
    if len({frozenset(arm.runs) for arm in of.arms}) > 1:
        yield "Differences are of the seeds that both have, means of all that there are."
    if len({run.steps for run in of.runs}) > 1:
        yield "Not all trained for as many steps: what wins by time may lose by steps, or on another machine."
    if not np.isfinite([run.rate for run in of.runs]).all():
        yield "What is nan or inf has diverged."


def draw(found: Sequence[Comparison], file: Path) -> None:
    """Draws of each test every run's rate on the left, and the differences with their intervals on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = [[_written_out(arm.label) for arm in of.arms] for of in found]
    heights = [1.6 + sum(0.3 + 0.16 * label.count("\n") for label in own) for own in labels]
    style = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 9,
        "axes.titlesize": 9,
    }
    with pyplot.rc_context(style):
        size, rows = (10, sum(heights)), len(found)
        figure, axes = pyplot.subplots(
            rows, 2, figsize=size, height_ratios=heights, sharey="row", squeeze=False
        )
        figure.set_layout_engine("constrained")
        for (left, right), of, own in zip(axes, found, labels, strict=True):
            _draw_rates(left, of)
            left.set_yticks(range(len(own)), own)
            left.set_ylim(len(own) - 0.5, -0.5)
            _draw_differences(right, of)
        figure.savefig(file, dpi=150)
        pyplot.close(figure)


def _draw_rates(axis: Any, of: Comparison) -> None:
    for place, arm in enumerate(of.arms):
        rates = of.scale * np.array([run.rate for run in arm.runs.values()])
        axis.plot(rates, [place] * len(rates), "o", color="#0072B2", alpha=0.6, markersize=5)
        axis.plot(rates.mean(), place, "|", color="black", markersize=14)
    axis.set_title(_written_out(of.title), loc="left")
    axis.set_xlabel("each seed, and their mean" + ", %" * (of.scale > 1))


def _draw_differences(axis: Any, of: Comparison) -> None:
    for place, more in enumerate(of.differences, 1):
        mean, low, high = (of.scale * value for value in more[:3])
        name = more.verdict.partition(",")[0]
        colour = COLOURS.get(name, COLOURS["not known"])
        style = (
            {"fmt": "x"}
            if np.isnan(low)
            else {"fmt": "o", "mfc": "white" if more.pairs == 1 else colour}
        )
        axis.errorbar(
            mean, place, xerr=[[mean - low], [high - mean]], color=colour, capsize=3, **style
        )
        if np.isfinite(mean):
            told = more.verdict.replace("\n", " ")
            axis.annotate(
                told,
                (mean, place),
                (0, 6),
                textcoords="offset points",
                ha="center",
                color=colour,
                fontsize=8,
            )
    axis.axvline(0, color="black", linewidth=0.8, linestyle=":")
    axis.set_title(f"difference from the first, {CONFIDENCE:.0%} for all at once", loc="left")
    axis.set_xlabel("points, " * (of.scale > 1) + "left is better")


def _written_out(text: str) -> str:
    """As matplotlib writes it out, in lines of some 40 characters; a dollar would begin a formula."""
    return "\n".join(fill(line, 44) for line in text.replace("$", r"\$").split("\n"))


def compare(folders: Sequence[Path], split: str, metric: str | None) -> list[Comparison]:
    """The runs by what they were scored on.

    Raises:
        UserError: one is no run or damaged, or none is scored so.
    """
    tests: dict[str, list[Run]] = {}
    left: list[UnscoredError] = []
    for folder in folders:
        try:
            run = read_run(folder, split, metric)
        except UnscoredError as error:
            left.append(error)
        else:
            tests.setdefault(run.test, []).append(run)
    if not tests:
        raise left[0]
    if left:
        log.warning("%d of %d runs are left out: %s", len(left), len(folders), left[0])
    everyone, found = [run for runs in tests.values() for run in runs], []
    for runs in tests.values():
        of = group_by_setting(runs)
        found.append(Comparison(title(runs, everyone), of, differences(of)))
    return found


def main() -> int:
    """Prints a table and draws a picture of each test that runs share; returns the exit status."""
    parser = Parser(
        prog="python -m famx.compare",
        description="Whether runs of other settings make fewer errors.",
    )
    told = "the folder of a run or of a sweep, which stands for its runs by name; others are held against the first"
    parser.add_argument("runs", metavar="RUN", nargs="+", help=told)
    parser.add_argument(
        "--split", default="test", help="test, dev, or another split that they are scored on"
    )
    told = "wer if not given, or loss where there are no words"
    parser.add_argument("--metric", choices=(*ERROR_UNITS, "loss"), help=told)
    parser.add_argument(
        "--png", type=Path, help="where the picture goes; compare.png beside the runs if not given"
    )
    arguments = parser.parse_args()
    load("famx")
    folders = find_runs(arguments.runs)
    file = (
        arguments.png
        or Path(os.path.commonpath([folder.resolve().parent for folder in folders])) / "compare.png"
    )
    found = compare(folders, arguments.split, arguments.metric)
    files.check_png_path(file)
    console = Console(highlight=False, width=max(WIDTH, Console().width))
    for of in found:
        console.print(table(of))
        console.print(*notes(of), sep="\n", markup=False, soft_wrap=True)
        if drawn := genes(of):
            console.print(drawn)
    with files.report_os_errors(file):
        draw(found, file)
    console.print(f"picture: {file}", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    run_command(main)
