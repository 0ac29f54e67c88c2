"""Draws comparisons of settings: the rates of all runs, and the differences."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from famx.analysis.comparison import Comparison
from famx.analysis.significance import CONFIDENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.typing import RcKeyType

LABEL_WIDTH = 44  # characters of a line
# palette of Okabe and Ito, which colour-blind readers can distinguish
COLOURS = {"better": "#009E73", "worse": "#D55E00", "not shown": "#555555", "not known": "#BBBBBB"}
RUN_COLOUR = "#0072B2"
STYLE: "dict[RcKeyType, Any]" = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "axes.titlesize": 9,
}


def draw(comparisons: Sequence[Comparison], file: Path) -> None:
    """Draws a row for each test: rates of all runs, and differences with their intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # labels decide the heights, in inches
    labels = []
    heights = []
    for comparison in comparisons:
        lines = [_for_matplotlib(setting.label) for setting in comparison.settings]
        labels.append(lines)
        heights.append(1.6 + sum(0.3 + 0.16 * line.count("\n") for line in lines))

    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(
            len(comparisons),
            2,
            figsize=(10, sum(heights)),
            height_ratios=heights,
            sharey="row",
            squeeze=False,
        )
        figure.set_layout_engine("constrained")
        # rates on the left, differences on the right; the baseline is at the top
        for row, comparison, lines in zip(axes, comparisons, labels, strict=True):
            rate_axis, difference_axis = row
            _draw_rates(rate_axis, comparison)
            rate_axis.set_yticks(range(len(lines)), lines)
            rate_axis.set_ylim(len(lines) - 0.5, -0.5)
            _draw_differences(difference_axis, comparison)
        figure.savefig(file, dpi=150)
        pyplot.close(figure)


def _draw_rates(axis: "Axes", comparison: Comparison) -> None:
    """Draws one point per run, and a bar at the mean of each setting."""
    for row, setting in enumerate(comparison.settings):
        rates = comparison.scale * np.array([run.rate for run in setting.runs.values()])
        axis.plot(rates, [row] * len(rates), "o", color=RUN_COLOUR, alpha=0.6, markersize=5)
        axis.plot(rates.mean(), row, "|", color="black", markersize=14)
    axis.set_title(_for_matplotlib(comparison.title), loc="left")
    axis.set_xlabel("each seed, and their mean" + (", %" if comparison.is_fraction else ""))


def _draw_differences(axis: "Axes", comparison: Comparison) -> None:
    """Draws each difference, its interval and its verdict; open circles are from one seed."""
    for row, difference in enumerate(comparison.differences, 1):
        mean, low, high = (comparison.scale * value for value in difference[:3])
        # a verdict from one seed has the same colour
        colour = COLOURS.get(difference.verdict.partition(",")[0], COLOURS["not known"])
        marker: dict[str, Any] = {"fmt": "o", "mfc": "white" if difference.pairs == 1 else colour}
        if np.isnan(low):
            marker = {"fmt": "x"}
        # the interval, and the verdict above it
        reach = [[mean - low], [high - mean]]
        axis.errorbar(mean, row, xerr=reach, color=colour, capsize=3, **marker)
        if np.isfinite(mean):
            axis.annotate(
                difference.verdict.replace("\n", " "),
                (mean, row),
                (0, 6),
                textcoords="offset points",
                ha="center",
                color=colour,
                fontsize=8,
            )
    axis.axvline(0, color="black", linewidth=0.8, linestyle=":")
    axis.set_title(f"difference from the first, {CONFIDENCE:.0%} simultaneously", loc="left")
    side = "right" if comparison.better == "higher" else "left"
    axis.set_xlabel(("points, " if comparison.is_fraction else "") + f"{side} is better")


def _for_matplotlib(text: str) -> str:
    """Returns the text in short lines, its dollar signs escaped since they begin a formula."""
    lines = text.replace("$", r"\$").split("\n")
    return "\n".join(fill(line, LABEL_WIDTH) for line in lines)
