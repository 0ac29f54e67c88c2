"""`spectrum.parquet`: the optimizer-probe measurements of every tensor at every report."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import NamedTuple

import pyarrow
import torch
from jaxtyping import Float
from pyarrow import parquet
from torch import Tensor

from famx.monitoring.metrics import HeatMap, RowGroup
from famx.notation import UserError
from famx.training.tree import MALFORMED

log = logging.getLogger(__name__)

LEVEL = 0.05  # significance level of the test of whiteness
DIGEST = "sha256"  # key of the file's metadata
MAX_COLUMNS = 64  # columns of a heat map; some reports of longer runs are not drawn
WHITE_NOISE = (1.0, "1 = white noise")  # marked on the colours of band powers
# columns of text, by the metric whose bands they name
NAME_COLUMNS = {"bands": "band_names", "rule_bands": "rule_band_names"}
PICTURES = {"bands": "bands/gradients", "rule_bands": "bands/rule"}

BandNames = Mapping[str, Sequence[tuple[str, ...]]]


class Decision(NamedTuple):
    """The decision of a momentum rule for one tensor at one report.

    Args:
        step: step of the report, from 1.
        tensor: name of the tensor.
        kind: kind of the tensor, by which FAM chooses its handler.
        bands: name of a band (its range of periods in steps) -> power in the rule's history, in
            units of white noise; empty if the rule has not measured the tensor.
        base: base momentum.
        coefficient: momentum that the rule chose.
        fired: whether the rule changed the base momentum.
    """

    step: int
    tensor: str
    kind: str
    bands: dict[str, float]
    base: float
    coefficient: float
    fired: bool


class SpectrumLog:
    """Stores one run's reports of the optimizer probe, one row per tensor and report.

    Args:
        file: the file of the reports.
        names: names of the tensors, in the order of the values.
        kinds: kinds of the tensors.
        step: reports of later steps are removed (0 for a new run).
        band_names: metric with bands -> the names of the bands of each tensor.
    """

    def __init__(
        self,
        file: Path,
        names: Sequence[str],
        kinds: Sequence[str],
        step: int = 0,
        band_names: BandNames | None = None,
    ):
        self.file = file
        self.names = list(names)
        self.kinds = list(kinds)
        self.band_names = dict(band_names or {})
        self.reports: dict[int, dict[str, Tensor]] = {}
        if step == 0:
            self.file.unlink(missing_ok=True)
        if self.file.exists():
            self.reports = self._read(step)

    def add(self, step: int, report: Mapping[str, Tensor]) -> dict[str, float]:
        """Adds one report and returns its curves: means over the tensors of each kind.

        `bands/kind_i_p` is the power of band i, of periods p in steps, over tensors with a
        gradient; 1 is white noise. `probe/metric/kind` are the other metrics; `white` is the share
        of tensors whose gradient passes for white noise at the 5 % level.

        Args:
            report: metric -> one value or row per tensor, on the CPU.
        """
        self.reports[step] = dict(report)
        curves = self._band_curves(_defined_bands(report))
        for metric, values in _series(report).items():
            for kind in dict.fromkeys(self.kinds):
                of_kind = values[self._rows(kind)]
                defined = of_kind[of_kind.isfinite()]
                if len(defined):
                    curves[f"probe/{metric}/{kind}"] = defined.mean().item()
        return curves

    def curves_of_bands(self) -> dict[str, list[str]]:
        """Returns the tags of the curves of each kind's bands, from the slowest band."""
        tags: dict[str, list[str]] = {}
        for kind, names in zip(self.kinds, self.band_names.get("bands", []), strict=False):
            tags[kind] = [f"bands/{kind}_{i}_{name}" for i, name in enumerate(names, 1)]
        return tags

    def images(self) -> dict[str, HeatMap]:
        """Returns heat maps with one row per tensor, by kind.

        `probe/metric` has one column per report. `bands/gradients` and `bands/rule` have one column
        per band of the last report: the measured powers, and those by which a rule decides.
        """
        if not self.reports:
            return {}
        # reports at equal distances, if there are many
        steps = list(self.reports)
        n_columns = min(len(steps), MAX_COLUMNS)
        columns = []
        for i in torch.linspace(0, len(steps) - 1, n_columns).round().long().tolist():
            report = self.reports[steps[i]]
            columns.append(_quarters(report) | _series(report))
        # one heat map per metric over the reports
        images = {}
        for metric in columns[0]:
            values = torch.stack([column[metric] for column in columns], 1)
            images[f"probe/{metric}"] = self._image(values, f"steps {steps[0]} to {steps[-1]}")
        # one per metric with bands
        last = self.reports[steps[-1]]
        for metric, tag in PICTURES.items():
            if metric in last:
                caption = f"bands by period in steps, at step {steps[-1]}"
                names = self.band_names.get(metric, [])
                values = _defined_bands(last) if metric == "bands" else last[metric]
                images[tag] = self._image(values, caption, names)._replace(mark=WHITE_NOISE)
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
            if metric in self.band_names:
                names = [list(of_tensor) for of_tensor in self.band_names[metric]]
                columns[NAME_COLUMNS[metric]] = names * len(steps)
        # a rename is atomic, a write is not
        temp_path = self.file.with_suffix(".tmp")
        # damage of a page is detected by its checksum, of anything else by the digest
        table = pyarrow.table(columns)
        digest = _digest(self.names, self.kinds, self.reports)
        table = table.replace_schema_metadata({DIGEST: digest})
        temp_path.unlink(missing_ok=True)
        # "x" follows no link
        with temp_path.open("xb") as stream:
            parquet.write_table(table, stream, write_page_checksum=True)
        temp_path.replace(self.file)

    def _rows(self, kind: str) -> list[int]:
        return [row for row, of_row in enumerate(self.kinds) if of_row == kind]

    def _band_curves(self, bands: Float[Tensor, "tensors bands"]) -> dict[str, float]:
        curves = {}
        for kind, tags in self.curves_of_bands().items():
            means = bands[self._rows(kind)].nanmean(0).tolist()
            for tag, mean in zip(tags, means, strict=True):
                if not isnan(mean):
                    curves[tag] = mean
        return curves

    def _image(
        self,
        values: Float[Tensor, "tensors columns"],
        caption: str,
        names: Sequence[tuple[str, ...]] = (),
    ) -> HeatMap:
        """Returns a heat map of values, with rows sorted by kind."""
        order = []
        groups = []
        for kind in dict.fromkeys(self.kinds):
            rows = self._rows(kind)
            order += rows
            # tensors of a kind have the same bands; some are not measured and have none
            titles: tuple[str, ...] = ()
            if names:
                titles = max((names[row] for row in rows), key=len)
            groups.append(RowGroup(kind, len(rows), titles))
        tensors = tuple(self.names[row] for row in order)
        return HeatMap(values[order], tensors, caption, tuple(groups))

    def _read(self, step: int) -> dict[int, dict[str, Tensor]]:
        """Returns the reports of the file up to `step`; none, with a warning, if it is damaged.

        A copy of a damaged file remains.
        """
        try:
            reports = _verified_reports(self.file)
        except (pyarrow.ArrowException, OSError, *MALFORMED) as error:
            copy = self.file.with_name("spectrum.damaged.parquet")
            self.file.replace(copy)
            log.warning(
                "%s is damaged and will be replaced, a copy is %s: %s", self.file, copy.name, error
            )
            return {}
        return {reported: report for reported, report in reports.items() if reported <= step}


def _verified_reports(file: Path) -> dict[int, dict[str, Tensor]]:
    """Returns all reports of a file, which must be as they were written.

    Raises:
        ValueError: the content differs from its digest.
        pyarrow.ArrowException, OSError, LookupError, TypeError: the file cannot be read.
    """
    table = parquet.read_table(file, page_checksum_verification=True)
    reports: dict[int, dict[str, Tensor]] = {}
    names: list[str] = []
    kinds: list[str] = []
    for step, rows in by_step(table).items():
        names = rows["tensor"].to_pylist()
        kinds = rows["kind"].to_pylist()
        reports[step] = {}
        for name in rows.column_names:
            if name not in ("step", "tensor", "kind", *NAME_COLUMNS.values()):
                reports[step][name] = torch.tensor(rows[name].to_pylist())
    metadata = table.schema.metadata or {}
    if metadata.get(DIGEST.encode()) != _digest(names, kinds, reports).encode():
        raise ValueError("its content differs from its digest")
    return reports


def _digest(
    names: Sequence[str], kinds: Sequence[str], reports: Mapping[int, Mapping[str, Tensor]]
) -> str:
    """Returns the SHA-256 of reports."""
    digest = hashlib.sha256(json.dumps([list(names), list(kinds)]).encode())
    for step, report in reports.items():
        for metric, values in report.items():
            digest.update(f"{step} {metric}".encode())
            # one representation of values of all dtypes, and of NaN
            wide = values.double()
            digest.update(wide.masked_fill(wide.isnan(), torch.nan).numpy().tobytes())
    return digest.hexdigest()


def read_decisions(file: str | Path) -> list[Decision]:
    """Reads the decisions of a momentum rule from `spectrum.parquet`, report by report.

    Raises:
        UserError: the file is missing or damaged, or its optimizer has no momentum rule.
    """
    columns = ["step", "tensor", "kind", "base", "coefficient", "fired"]
    try:
        table = parquet.read_table(file)
        if "fired" not in table.column_names:
            raise UserError(f"{file} has no decisions: its optimizer has no momentum rule")
        values = zip(*(table[column].to_pylist() for column in columns), strict=True)
        bands: list[list[float]] = [[]] * len(table)
        names: list[list[str]] = [[]] * len(table)
        # rules that do not measure bands have none
        if "rule_bands" in table.column_names:
            bands = table["rule_bands"].to_pylist()
            names = table["rule_band_names"].to_pylist()
    except (pyarrow.ArrowInvalid, KeyError, OSError) as error:
        raise UserError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error
    # one row per tensor and report
    decisions = []
    for row, row_bands, row_names in zip(values, bands, names, strict=True):
        step, tensor, kind, base, coefficient, fired = row
        # bands that the tensor does not have come last
        powers = dict(zip(row_names, row_bands, strict=False))
        measured = {name: power for name, power in powers.items() if not isnan(power)}
        decisions.append(Decision(step, tensor, kind, measured, base, coefficient, bool(fired)))
    return decisions


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


def _defined_bands(report: Mapping[str, Tensor]) -> Float[Tensor, "tensors bands"]:
    """Returns the powers of the bands, NaN for tensors without a gradient, where all are 0."""
    bands = report["bands"]
    has_gradient = bands.sum(1, keepdim=True) > 0
    return bands.masked_fill(~has_gradient, torch.nan)


def _quarters(report: Mapping[str, Tensor]) -> dict[str, Float[Tensor, " tensors"]]:
    """Returns the power of the lowest and of the highest quarter of the bands."""
    bands = _defined_bands(report)
    quarter = bands.shape[1] // 4
    return {"slow": bands[:, :quarter].mean(1), "fast": bands[:, -quarter:].mean(1)}


def _series(report: Mapping[str, Tensor]) -> dict[str, Float[Tensor, " tensors"]]:
    """Returns each metric with one value per tensor; the p-value becomes the test's result."""
    whiteness = report["whiteness"]
    is_white = (whiteness > LEVEL).float()
    series = {"white": torch.where(whiteness.isnan(), torch.nan, is_white)}
    for metric, values in report.items():
        # the base momentum does not change
        if values.ndim == 1 and metric not in ("whiteness", "base"):
            series[metric] = values
    return series
