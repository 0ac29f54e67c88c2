"""Draws optimizer-probe measurements: spectra of gradients, and momentum over the steps."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from famx.analysis.spectra import KindSummary
from famx.monitoring.optimizer_probe import BANDS, WINDOW
from famx.spectrum.base import edges

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.typing import RcKeyType

MAX_COLUMNS = 4  # runs per row of the picture
# palette of Okabe and Ito, which colour-blind readers can distinguish
COLOURS = {
    "conv": "#0072B2",
    "attention": "#D55E00",
    "embedding": "#009E73",
    "norm": "#999999",
    "other": "#CC79A7",
}
MOMENTUM_LINES: dict[str, dict[str, Any]] = {
    "chosen": {"linestyle": "-", "linewidth": 1.4},
    "in effect": {"linestyle": "--", "marker": ".", "markersize": 4, "linewidth": 0.8},
}
STYLE: "dict[RcKeyType, Any]" = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "axes.titlesize": 9,
}


def draw(runs: Mapping[str, Mapping[str, KindSummary]], file: Path) -> None:
    """Draws the spectra of each run and below them its momentum, with four runs per row.

    Args:
        runs: title -> kind of tensor -> summary.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    n_columns = min(len(runs), MAX_COLUMNS)
    n_rows = -(-len(runs) // n_columns)
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(
            2 * n_rows,
            n_columns,
            figsize=(2.9 * n_columns + 1.2, 6.2 * n_rows),
            squeeze=False,
        )
        figure.set_layout_engine("constrained")
        uppers = axes[::2].flatten()
        lowers = axes[1::2].flatten()

        # axes are shared before anything is drawn, so that the limits include all runs
        for i in range(1, len(runs)):
            uppers[i].sharey(uppers[0])
            lowers[i].sharey(lowers[0])
        for i, (title, summaries) in enumerate(runs.items()):
            _draw_run(uppers[i], lowers[i], title, summaries)
        # runs need not fill the last row
        for axis in (*uppers[len(runs) :], *lowers[len(runs) :]):
            axis.set_axis_off()
        uppers[0].set_ylim(0, None)
        for upper, lower in zip(uppers[::n_columns], lowers[::n_columns], strict=True):
            upper.set_ylabel("power of gradients, white noise = 1")
            lower.set_ylabel("momentum")

        # one legend, with each label once
        for label, line in MOMENTUM_LINES.items():
            lowers[0].plot([], [], color="black", label=f"momentum {label}", **line)
        handle_by_label = {}
        for axis in axes.flat:
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
                handle_by_label[label] = handle
        figure.legend(
            handle_by_label.values(),
            handle_by_label.keys(),
            loc="outside lower center",
            ncols=max(2, 2 * n_columns),
            frameon=False,
        )
        figure.savefig(file, dpi=150)
        pyplot.close(figure)


def _draw_run(
    upper: "Axes", lower: "Axes", title: str, summaries: Mapping[str, KindSummary]
) -> None:
    upper.set_title(title.replace(",", "\n"))
    upper.axhline(1, color="black", linewidth=0.8, linestyle=":", label="white noise")
    for kind, summary in summaries.items():
        _draw_bands(upper, kind, summary)
        _draw_momentum(lower, kind, summary)
    upper.set(xlabel="frequency, cycles per step", xlim=(0, 0.5))
    lower.set_xlabel("step")


def _draw_bands(axis: "Axes", kind: str, summary: KindSummary) -> None:
    """Draws the mean power at the centre of each band, with its interval."""
    # centres in cycles per step; bin k has the frequency k / WINDOW
    centres = []
    for start, stop in edges("equal", WINDOW // 2 + 1, BANDS):
        centres.append((start + stop - 1) / 2 / WINDOW)
    colour = COLOURS[kind]
    axis.fill_between(centres, summary.low, summary.high, color=colour, alpha=0.2, linewidth=0)
    axis.plot(centres, summary.bands.mean(0), color=colour, marker="o", markersize=3, label=kind)


def _draw_momentum(axis: "Axes", kind: str, summary: KindSummary) -> None:
    """Draws the mean momentum that was chosen and the median of the one that took effect."""
    colour = COLOURS[kind]
    if not np.isnan(summary.coefficient).all():
        coefficient = np.nanmean(summary.coefficient, 1)
        axis.plot(summary.steps, coefficient, color=colour, **MOMENTUM_LINES["chosen"])
    effective = np.nanmedian(summary.momentum, 1)
    axis.plot(summary.steps, effective, color=colour, **MOMENTUM_LINES["in effect"])
