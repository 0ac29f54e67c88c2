"""Reports of comparisons, as one HTML file with its pictures inside, and as Markdown."""

import base64
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, select_autoescape

from famx import files
from famx.analysis.comparison import Comparison, notes
from famx.analysis.comparison_plot import draw
from famx.analysis.curves import draw_curves
from famx.analysis.runs import Run, Setting
from famx.analysis.significance import CONFIDENCE, Difference

TEMPLATES = Path(__file__).parent
UNLIKE = 1.1  # factor of a cost from which a better setting may be better for its cost


class Cost(NamedTuple):
    """A cost of a setting: the mean over its runs.

    Args:
        heading: heading of its column.
        read: returns the cost of a run; NaN if the run did not store it.
        scale: factor of the displayed numbers, which have three digits unless they are counts.
    """

    heading: str
    read: Callable[[Run], float]
    scale: float = 1.0

    def mean(self, setting: Setting) -> float:
        return float(np.mean([self.read(run) for run in setting.runs.values()]))

    def format(self, value: float) -> str:
        if np.isnan(value):
            return ""
        number = self.scale * value
        return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _stored(key: str) -> Callable[[Run], float]:
    return lambda run: float(run.result.get(key, np.nan))


PARAMETERS = Cost("parameters", lambda run: run.parameters)
STEP_TIME = Cost("ms a step", lambda run: _stored("seconds")(run) / run.steps, 1e3)
COSTS = (
    PARAMETERS,
    Cost("MFLOP per {unit}", _stored("flops"), 1e-6),
    Cost("steps", lambda run: run.steps),
    STEP_TIME,
    Cost("minutes of training", _stored("seconds"), 1 / 60),
    Cost("peak memory, MB", _stored("memory"), 1e-6),
)


def write_report(comparisons: Sequence[Comparison], folder: Path) -> list[Path]:
    """Writes `report.html` and `report.md` into a folder, and returns both paths.

    The HTML file holds its pictures; Markdown, which cannot, has the tables alone.

    Raises:
        UserError: the folder cannot be written to.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # a cell of a Markdown table ends at a bar, and cannot hold a line break
    environment.filters["cell"] = lambda text: text.replace("|", "\\|").replace("\n", " ")
    tests = [_describe(comparison, folder) for comparison in comparisons]
    paths = report_files(folder)
    for path in paths:
        text = environment.get_template(f"{path.name}.j2").render(tests=tests)
        files.write_atomic(path, text)
    return paths


def report_files(folder: Path) -> list[Path]:
    """Returns the files that `write_report` writes into a folder."""
    return [folder / "report.html", folder / "report.md"]


def _describe(comparison: Comparison, folder: Path) -> dict[str, Any]:
    """Returns what the templates show of a comparison, as text."""
    differences = [None, *comparison.differences]
    settings = list(zip(comparison.settings, differences, strict=True))
    return {
        "title": comparison.title,
        "sentences": list(sentences(comparison)),
        "picture": _picture(lambda file: draw([comparison], file)),
        "curves": _picture(lambda file: draw_curves(comparison, file)),
        "rates": [_rate_row(comparison, *pair) for pair in settings],
        "cost_headings": [cost.heading.format(unit=_unit(comparison)) for cost in COSTS],
        "costs": [_cost_row(comparison, setting) for setting in comparison.settings],
        "notes": list(notes(comparison)),
        "protocol": list(_protocol(comparison)),
        "runs": [_run_row(comparison, run, folder) for run in comparison.runs],
    }


def sentences(comparison: Comparison) -> Iterator[str]:
    """Yields the result of each setting in one sentence, and one about a cost that is larger."""
    baseline = comparison.settings[0]
    name = comparison.runs[0].metric
    unit = " %" if comparison.is_fraction else ""
    rate = comparison.format_rate(baseline.mean_rate)
    yield f"Baseline {_label(baseline)}: {name} {rate}{unit}, mean of {_seeds(baseline)}."
    for setting, difference in zip(comparison.settings[1:], comparison.differences, strict=True):
        yield _result(comparison, setting, difference)
        if difference.verdict.startswith("better"):
            yield from _warn_of_cost(setting, baseline)


def _result(comparison: Comparison, setting: Setting, difference: Difference) -> str:
    """Returns the result of a setting in one sentence."""
    label = _label(setting)
    verdict = difference.verdict.replace("\n", " ")
    diverged = sum(not np.isfinite(run.rate) for run in setting.runs.values())
    if diverged:
        return f"{label}: {diverged} of {_seeds(setting)} diverged."
    if np.isnan(difference.mean):
        return f"{label}: {verdict} with the baseline."
    change = f"{comparison.format_rate(difference.mean, '+')} {comparison.unit}"
    if np.isnan(difference.low):
        return f"{label}: {change}, {verdict}: there is no interval for one seed."
    interval = comparison.format_interval(difference.low, difference.high)
    return (
        f"{label}: {verdict}, {change} "
        f"({CONFIDENCE:.0%} interval {interval}, {difference.pairs} seeds)."
    )


def _warn_of_cost(setting: Setting, baseline: Setting) -> Iterator[str]:
    """Yields a sentence about each cost by which a setting may be better."""
    for cost, noun in ((PARAMETERS, "parameters"), (STEP_TIME, "time of a step")):
        ratio = cost.mean(setting) / cost.mean(baseline)
        if ratio >= UNLIKE:
            yield (
                f"Caution: {_label(setting)} has {ratio:.2f} times the {noun} of the baseline, "
                "which alone may explain that it is better."
            )


def _rate_row(
    comparison: Comparison, setting: Setting, difference: Difference | None
) -> dict[str, str]:
    row = {
        "setting": _label(setting),
        "seeds": str(len(setting.runs)),
        "mean": comparison.format_rate(setting.mean_rate),
        "difference": "",
        "interval": "",
        "verdict": "",
    }
    if difference is None:
        return row | {"verdict": "baseline"}
    row["verdict"] = difference.verdict.replace("\n", " ")
    if not np.isnan(difference.mean):
        row["difference"] = comparison.format_rate(difference.mean, "+")
    if not np.isnan(difference.low):
        row["interval"] = comparison.format_interval(difference.low, difference.high)
    return row


def _cost_row(comparison: Comparison, setting: Setting) -> dict[str, Any]:
    """Returns each cost of a setting, and its ratio to the baseline's."""
    baseline = comparison.settings[0]
    cells = []
    for cost in COSTS:
        value = cost.mean(setting)
        ratio = value / cost.mean(baseline)
        is_known = setting is not baseline and np.isfinite(ratio)
        cells.append(cost.format(value) + (f" ({ratio:.2f}x)" if is_known else ""))
    return {"setting": _label(setting), "cells": cells}


def _protocol(comparison: Comparison) -> Iterator[str]:
    """Yields how the runs were trained and scored, one sentence each."""
    runs = comparison.runs
    yield (
        "The weights with the best score on dev are scored once on the test split. "
        "Differences are paired: runs of one seed saw the same batches."
    )
    chances = "the training (Student's t over two seeds or more)"
    has_utterances = len(runs[0].units) > 1
    if has_utterances:
        chances = f"the choice of the test utterances (bootstrap) and {chances}"
    yield f"Intervals contain {chances}; they hold for all settings at once (Bonferroni)."
    shared = _shared_settings(runs)
    # options of the loader are mostly those of recordings
    for section in ("data", "task", "trainer", *(("loader",) if has_utterances else ())):
        options = [f"{key}={value}" for key, value in shared.items() if _is_of(key, section)]
        if options:
            yield f"The same in all runs: {', '.join(options)}."
    devices = {str(run.result["device"]) for run in runs if "device" in run.result}
    if devices:
        yield f"Hardware: {'; '.join(sorted(devices))}."


def _shared_settings(runs: Sequence[Run]) -> dict[str, str]:
    shared = {}
    for key, value in runs[0].settings.items():
        if value and value != "null" and all(run.settings.get(key) == value for run in runs):
            shared[key] = value
    return shared


def _is_of(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def _run_row(comparison: Comparison, run: Run, folder: Path) -> dict[str, str]:
    diverged = not np.isfinite(run.rate)
    return {
        "folder": os.path.relpath(run.folder, folder),
        "seed": str(run.seed),
        "rate": "diverged" if diverged else comparison.format_rate(run.rate),
        "steps": f"{run.steps:,}",
    }


def _picture(paint: Callable[[Path], object]) -> str:
    """Returns a picture as base64, as HTML embeds it; empty if nothing was drawn."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "picture.png"
        paint(file)
        return base64.b64encode(file.read_bytes()).decode() if file.exists() else ""


def _unit(comparison: Comparison) -> str:
    """Returns the unit of data of the FLOPs; "second or token" if no run has stored it."""
    units = {str(run.result["unit"]) for run in comparison.runs if "unit" in run.result}
    return units.pop() if len(units) == 1 else "second or token"


def _label(setting: Setting) -> str:
    return setting.label.replace("\n", " ")


def _seeds(setting: Setting) -> str:
    count = len(setting.runs)
    return "1 seed" if count == 1 else f"{count} seeds"
