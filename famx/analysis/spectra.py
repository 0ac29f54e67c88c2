"""Summarises the optimizer-probe measurements of a run, by kind of tensor."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
from pyarrow import parquet
from rich import box
from rich.console import JustifyMethod
from rich.table import Table
from scipy.special import stdtrit

from famx import files
from famx.monitoring.optimizer_probe import BANDS, WINDOW
from famx.monitoring.spectrum_log import LEVEL, by_step
from famx.notation import UserError
from famx.training.run_dir import RunDir

KINDS = ("conv", "attention", "embedding", "norm", "other")
METRICS = ("bands", "lag1", "whiteness", "coefficient", "momentum")


class KindSummary(NamedTuple):
    """The measurements of one kind of tensors in one run.

    Args:
        steps: (reports,) steps of the reports.
        bands: (windows, BANDS) power in units of white noise, the mean over tensors; of reports
            whose windows do not overlap.
        low: (BANDS,) lower end of the 95 % interval of the mean over those reports (Student's t);
            NaN for fewer than two reports.
        high: (BANDS,) upper end.
        coefficient: (reports, tensors) momentum that was set or chosen.
        momentum: (reports, tensors) momentum that took effect.
        lag1: mean correlation of successive gradients.
        white: share of reports of tensors that pass for white noise.
    """

    steps: np.ndarray
    bands: np.ndarray
    low: np.ndarray
    high: np.ndarray
    coefficient: np.ndarray
    momentum: np.ndarray
    lag1: float
    white: float

    @property
    def choice(self) -> str:
        """Returns the range of the coefficients, and how they change."""
        # tensors that have a momentum in all reports
        defined = self.coefficient[:, ~np.isnan(self.coefficient).any(0)]
        if not defined.size:
            return "none"
        span = _format_span(defined.min(), defined.max())
        # reports in which the momentum of some tensor has changed
        changes = (np.diff(defined, axis=0) != 0).any(1)
        changed_at = np.flatnonzero(changes) + 1
        if not len(changed_at):
            return f"{span} constant"
        if len(changed_at) == 1 and changed_at[0] < len(defined) - 1:
            return f"{span} constant\nsince step {self.steps[changed_at[0]]}"
        n_changing = (defined != defined[0]).any(0).sum()
        return f"{span}\nmoves in {n_changing} of {defined.shape[1]}"


def read_spectra(run: str | Path) -> dict[str, KindSummary]:
    """Reads the reports of a run's optimizer probe: kind of tensor -> summary.

    Raises:
        UserError: there is no run, no report, or the file is damaged.
    """
    file = RunDir(run).spectrum_file
    if not file.parent.is_dir():
        raise UserError(f"{run} is not the folder of a run")
    files.require_own_files(file.parent)
    if not file.is_file():
        raise UserError(
            f"{run} has no {file.name}: a run writes it from the first report (trainer.log_every) "
            f"after {WINDOW} steps on, unless probe=off"
        )
    try:
        reports = by_step(parquet.read_table(file))
    except (pyarrow.ArrowInvalid, KeyError, OSError) as error:
        raise UserError(f"{file} is damaged: {str(error).splitlines()[0]}") from error

    # (reports, tensors, ...) of each metric; kinds are the same in all reports
    metrics = {}
    for name in METRICS:
        metrics[name] = np.array([rows[name].to_pylist() for rows in reports.values()])
    steps = np.array(list(reports))
    first_report = next(iter(reports.values()))
    kinds = np.array(first_report["kind"].to_pylist())

    # one summary per kind that has tensors
    summaries = {}
    for kind in KINDS:
        if kind in kinds:
            of_kind = {name: values[:, kinds == kind] for name, values in metrics.items()}
            summaries[kind] = summarise(steps, of_kind)
    return summaries


def summarise(steps: np.ndarray, metrics: Mapping[str, np.ndarray]) -> KindSummary:
    """Summarises the reports of one kind.

    Reports with overlapping windows share gradients, so the interval uses only reports without
    overlap.

    Args:
        steps: (reports,) steps of the reports.
        metrics: METRICS -> (reports, tensors) values, of bands (reports, tensors, BANDS).
    """
    # reports at least a window apart
    selected = [0]
    for i, step in enumerate(steps):
        if step >= steps[selected[-1]] + WINDOW:
            selected.append(i)

    # the mean over tensors that have a gradient, neither 0 nor NaN
    means = []
    for bands in metrics["bands"][selected]:
        has_gradient = bands.sum(-1) > 0
        if has_gradient.any():
            means.append(bands[has_gradient].mean(0))
    bands = np.array(means).reshape(-1, BANDS)

    # the interval
    n = len(bands)
    reach = np.full(BANDS, np.nan)
    if n > 1:
        reach = stdtrit(n - 1, 0.975) * bands.std(0, ddof=1) * n**-0.5
    mean = bands.mean(0)

    # the test of whiteness
    p_values = metrics["whiteness"]
    tested = p_values[~np.isnan(p_values)]
    return KindSummary(
        steps=steps,
        bands=bands,
        low=mean - reach,
        high=mean + reach,
        coefficient=metrics["coefficient"],
        momentum=metrics["momentum"],
        lag1=float(np.nanmean(metrics["lag1"])),
        white=float((tested > LEVEL).mean()),
    )


def spectra_table(title: str, summaries: Mapping[str, KindSummary]) -> Table:
    """Returns a table with one row per kind: bands with intervals, correlation, test, momentum."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    # columns
    band_names = [f"band {i + 1}" for i in range(BANDS)]
    for column in ("kind", *band_names, "lag 1", "white", "in effect", "momentum chosen"):
        justify: JustifyMethod = "left" if column in ("kind", "momentum chosen") else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    # rows: intervals are below the means; momentum is the range of the middle 80 % of its values
    for kind, summary in summaries.items():
        cells = []
        means = summary.bands.mean(0)
        for mean, low, high in zip(means, summary.low, summary.high, strict=True):
            interval = "" if np.isnan(low) else f"\n{low:.2f} to {high:.2f}"
            cells.append(f"{mean:.2f}{interval}")
        low, high = np.nanquantile(summary.momentum, [0.1, 0.9])
        table.add_row(
            kind,
            *cells,
            f"{summary.lag1:+.3f}",
            f"{100 * summary.white:.0f} %",
            _format_span(low, high),
            summary.choice,
        )
    return table


def _format_span(low: float, high: float) -> str:
    return f"{low:.3f}" if high - low < 5e-4 else f"{low:.3f} to {high:.3f}"
