"""spectrum.parquet, what the microscope saw of every tensor at every report; curves and heat maps are drawn from it."""

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

FILE = "spectrum.parquet"
LEVEL = 0.05  # of the test of whiteness
COLUMNS = 64  # of a heat map; longer runs are thinned out


class SpectrumLog:
    """Keeps one run's observations, a row a tensor and report.

    Args:
        folder: of the run.
        names, kinds: of the tensors, in the order of the values.
        step: what was seen after it is forgotten (0 for a new run).
    """

    def __init__(self, folder: Path, names: Sequence[str], kinds: Sequence[str], step: int = 0):
        self.file, self.names, self.kinds = folder / FILE, list(names), list(kinds)
        self.reports: dict[int, dict[str, Tensor]] = {}
        if not step:
            self.file.unlink(missing_ok=True)
        if not self.file.exists():
            return
        try:
            seen = by_step(parquet.read_table(self.file))
        except (pyarrow.ArrowInvalid, KeyError, OSError) as error:
            log.warning("%s is damaged and begins anew: %s", self.file, error)
            return
        for number, rows in seen.items():
            if number <= step:
                columns = [
                    name for name in rows.column_names if name not in ("step", "tensor", "kind")
                ]
                self.reports[number] = {
                    name: torch.tensor(rows[name].to_pylist()) for name in columns
                }

    def add(self, step: int, seen: Mapping[str, Tensor]) -> dict[str, float]:
        """Takes one report, `{metric: one value or row a tensor}`; the curves of each kind.

        `slow` and `fast` are the lowest and the highest quarter of the bands, 1 for white noise; `white` is the share
        of tensors whose gradient passes for white noise at the level of 5 %.
        """
        self.reports[step] = dict(seen)
        curves = {}
        for metric, values in _series(seen).items():
            for kind in dict.fromkeys(self.kinds):
                own = values[[k == kind for k in self.kinds]]
                own = own[own.isfinite()]
                if len(own):
                    curves[f"{metric}/{kind}"] = own.mean().item()
        return curves

    def pictures(self) -> dict[str, HeatMap]:
        """As `microscope/metric`, a row a tensor and a column a report."""
        steps = list(self.reports)
        kept = torch.linspace(0, len(steps) - 1, min(len(steps), COLUMNS)).round().long().tolist()
        columns = [_series(self.reports[steps[i]]) for i in kept]
        matrices = {
            name: torch.stack([column[name] for column in columns], 1)
            for name in (columns or [{}])[0]
        }
        return {
            f"microscope/{name}": HeatMap(
                values, tuple(self.names), f"steps {steps[0]} to {steps[-1]}"
            )
            for name, values in matrices.items()
        }

    def write(self) -> None:
        """Puts the file on the disk, whole or not at all."""
        if not self.reports:
            return
        n, steps = len(self.names), list(self.reports)
        columns = {
            "step": [step for step in steps for _ in range(n)],
            "tensor": self.names * len(steps),
            "kind": self.kinds * len(steps),
        }
        for metric in self.reports[steps[0]]:
            values = torch.cat([seen[metric] for seen in self.reports.values()])
            columns[metric] = list(values.numpy()) if values.ndim > 1 else values.numpy()
        aside = self.file.with_suffix(".tmp")
        parquet.write_table(pyarrow.table(columns), aside)
        aside.replace(self.file)


def by_step(table: pyarrow.Table) -> dict[int, pyarrow.Table]:
    """The rows of each report, in their order."""
    steps = table["step"].to_pylist()
    starts = [i for i, step in enumerate(steps) if not i or step != steps[i - 1]]
    return {
        steps[start]: table.slice(start, stop - start)
        for start, stop in zip(starts, [*starts[1:], len(steps)], strict=True)
    }


def _series(seen: Mapping[str, Tensor]) -> dict[str, Float[Tensor, " tensors"]]:
    """One value a tensor: the bands' lowest and highest quarter, the test's verdict; NaN where there is no gradient."""
    quarter = seen["bands"].shape[1] // 4
    bands = seen["bands"].masked_fill(~(seen["bands"].sum(1, keepdim=True) > 0), torch.nan)
    shown = {"slow": bands[:, :quarter].mean(1), "fast": bands[:, -quarter:].mean(1)}
    shown["white"] = torch.where(
        seen["whiteness"].isnan(), torch.nan, (seen["whiteness"] > LEVEL).float()
    )
    return shown | {
        metric: values for metric, values in seen.items() if metric not in ("bands", "whiteness")
    }
