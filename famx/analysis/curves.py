"""Learning curves of settings: the score on dev by step, with the range of the seeds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from famx.analysis.comparison import Comparison
from famx.analysis.comparison_plot import STYLE
from famx.analysis.runs import Run
from famx.training.run_dir import RunDir

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# of Okabe and Ito, without yellow, then repeated with dashes
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")


class Curve(NamedTuple):
    """The scores of a setting on dev, at the steps that all of its runs have evaluated.

    Args:
        steps: (n,) steps.
        values: (seeds, n) scores.
    """

    steps: np.ndarray
    values: np.ndarray


def read_curve(runs: Sequence[Run], tag: str) -> Curve:
    """Reads a metric of some runs, such as `dev/wer`."""
    by_run = [_read_values(run.folder, tag) for run in runs]
    steps = sorted(set.intersection(*(set(values) for values in by_run)))
    values = np.array([[values[step] for step in steps] for values in by_run])
    return Curve(np.array(steps), values)


def _read_values(folder: Path, tag: str) -> dict[int, float]:
    values = {}
    for line in RunDir(folder).metrics_file.read_text().splitlines():
        report = json.loads(line)
        if tag in report:
            values[int(report["step"])] = float(report[tag])
    return values


def draw_curves(comparison: Comparison, file: Path) -> bool:
    """Draws a line per setting, the mean over its seeds, in a band from the lowest to the highest.

    Returns:
        Whether there was anything to draw.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    metric = comparison.runs[0].metric
    curves = []
    for setting in comparison.settings:
        curve = read_curve(list(setting.runs.values()), f"dev/{metric}")
        if len(curve.steps):
            curves.append((setting.label.replace("\n", " "), curve))
    if not curves:
        return False
    with pyplot.rc_context(STYLE):
        figure, axis = pyplot.subplots(figsize=(8, 4), layout="constrained")
        for i, (label, curve) in enumerate(curves):
            _draw_curve(axis, curve, label, i, comparison.scale)
        axis.set_xlabel("step")
        axis.set_ylabel(f"dev {metric}" + (", %" if comparison.is_fraction else ""))
        if len(curves) <= 3 * len(COLOURS):
            axis.legend(frameon=False, fontsize=8)
        figure.savefig(file, dpi=150)
        pyplot.close(figure)
    return True


def _draw_curve(axis: "Axes", curve: Curve, label: str, number: int, scale: int) -> None:
    colour = COLOURS[number % len(COLOURS)]
    style = ("-", "--", ":")[number // len(COLOURS) % 3]
    values = scale * curve.values
    text = label.replace("$", r"\$")
    axis.plot(curve.steps, values.mean(0), style, color=colour, label=text, linewidth=1.5)
    if len(values) > 1:
        axis.fill_between(curve.steps, values.min(0), values.max(0), color=colour, alpha=0.15)
