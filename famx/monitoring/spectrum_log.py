"""`spectrum.parquet`: the optimizer-probe measurements of every tensor at every report."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow
import torch
from jaxtyping import Float
from pyarrow import parquet
from torch import Tensor

from famx.monitoring.metrics import HeatMap

log = logging.getLogger(__name__)

LEVEL = 0.05  # significance level of the test of whiteness
MAX_COLUMNS = 64  # columns of a heat map; some reports of longer runs are not drawn


class SpectrumLog:
    """Stores one run's reports of the optimizer probe, one row per tensor and report.

    Args:
        file: the file of the reports.
        names: names of the tensors, in the order of the values.
        kinds: kinds of the tensors.
        step: reports of later steps are removed (0 for a new run).
    """

    def __init__(self, file: Path, names: Sequence[str], kinds: Sequence[str], step: int = 0):
        self.file = file
        self.names = list(names)
        self.kinds = list(kinds)
        self.reports: dict[int, dict[str, Tensor]] = {}
        if step == 0:
            self.file.unlink(missing_ok=True)
        if self.file.exists():
            self.reports = self._read(step)

    def add(self, step: int, report: Mapping[str, Tensor]) -> dict[str, float]:
        """Adds one report and returns its curves, `probe/metric/kind`: means over tensors.

        `slow` and `fast` are the lowest and the highest quarter of the bands, 1 for white noise;
        `white` is the share of tensors whose gradient passes for white noise at the 5 % level.

        Args:
            report: metric -> one value or row per tensor, on the CPU.
        """
        self.reports[step] = dict(report)
        # means over the tensors of each kind whose values are defined
        curves = {}
        for metric, values in _series(report).items():
            for kind in dict.fromkeys(self.kinds):
                of_kind = values[[k == kind for k in self.kinds]]
                defined = of_kind[of_kind.isfinite()]
                if len(defined):
                    curves[f"probe/{metric}/{kind}"] = defined.mean().item()
        return curves

    def images(self) -> dict[str, HeatMap]:
        """Returns `probe/metric` -> a heat map: one row per tensor, one column per report."""
        if not self.reports:
            return {}
        # reports at equal distances, if there are many
        steps = list(self.reports)
        n_columns = min(len(steps), MAX_COLUMNS)
        columns = []
        for i in torch.linspace(0, len(steps) - 1, n_columns).round().long().tolist():
            columns.append(_series(self.reports[steps[i]]))
        # one heat map per metric
        images = {}
        for metric in columns[0]:
            values = torch.stack([column[metric] for column in columns], 1)
            caption = f"steps {steps[0]} to {steps[-1]}"
            images[f"probe/{metric}"] = HeatMap(values, tuple(self.names), caption)
        return images

    def write(self) -> None:
        """Writes the file; a crash leaves either the old or the new one."""
        if not self.reports:
            return
        # all tensors of the first report, then all of the second, ...
        steps = list(self.reports)
        columns = {
            "step": [step for step in steps for _ in self.names],
            "tensor": self.names * len(steps),
            "kind": self.kinds * len(steps),
        }
        for metric in self.reports[steps[0]]:
            values = torch.cat([report[metric] for report in self.reports.values()])
            columns[metric] = list(values.numpy()) if values.ndim > 1 else values.numpy()
        # a rename is atomic, a write is not
        temp_path = self.file.with_suffix(".tmp")
        temp_path.unlink(missing_ok=True)
        # "x" follows no link
        with temp_path.open("xb") as stream:
            parquet.write_table(pyarrow.table(columns), stream)
        temp_path.replace(self.file)

    def _read(self, step: int) -> dict[int, dict[str, Tensor]]:
        """Returns the reports of the file up to `step`; none, with a warning, if it is damaged."""
        try:
            rows_by_step = by_step(parquet.read_table(self.file))
        except (pyarrow.ArrowInvalid, KeyError, OSError) as error:
            log.warning("%s is damaged and will be replaced: %s", self.file, error)
            return {}
        reports: dict[int, dict[str, Tensor]] = {}
        for reported_step, rows in rows_by_step.items():
            if reported_step > step:
                continue
            reports[reported_step] = {}
            for name in rows.column_names:
                if name not in ("step", "tensor", "kind"):
                    reports[reported_step][name] = torch.tensor(rows[name].to_pylist())
        return reports


def by_step(table: pyarrow.Table) -> dict[int, pyarrow.Table]:
    """Returns the rows of each report, in the order of the reports."""
    steps = table["step"].to_pylist()
    # rows are sorted by step, and each report is a slice
    starts = [i for i, step in enumerate(steps) if i == 0 or step != steps[i - 1]]
    stops = [*starts[1:], len(steps)]
    reports = {}
    for start, stop in zip(starts, stops, strict=True):
        reports[steps[start]] = table.slice(start, stop - start)
    return reports


def _series(report: Mapping[str, Tensor]) -> dict[str, Float[Tensor, " tensors"]]:
    """Returns each metric as one value per tensor.

    Bands become their lowest and highest quarter, NaN if there is no gradient; the p-value becomes
    the result of the test.
    """
    # without a gradient all bands are 0
    bands = report["bands"]
    has_gradient = bands.sum(1, keepdim=True) > 0
    bands = bands.masked_fill(~has_gradient, torch.nan)
    quarter = bands.shape[1] // 4
    whiteness = report["whiteness"]
    is_white = (whiteness > LEVEL).float()
    series = {
        "slow": bands[:, :quarter].mean(1),
        "fast": bands[:, -quarter:].mean(1),
        "white": torch.where(whiteness.isnan(), torch.nan, is_white),
    }
    for metric, values in report.items():
        if metric not in ("bands", "whiteness"):
            series[metric] = values
    return series
