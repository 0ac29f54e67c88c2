"""Lays runs side by side as the microscope saw them: python -m famx.spectra RUN [RUN...] [--png FILE]"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
from pyarrow import parquet
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.special import stdtrit

from famx import files
from famx.config.command import Parser, run_command
from famx.monitoring.optimizer_probe import BANDS, WINDOW
from famx.monitoring.spectrum_log import FILE, LEVEL, by_step
from famx.notation import UserError
from famx.spectrum.base import edges
from famx.training.run_dir import find_runs

WIDTH = 150  # of the table, in characters
ACROSS = 4  # runs side by side in the picture
# of Okabe and Ito, told apart by every eye
COLOURS = {
    "conv": "#0072B2",
    "attention": "#D55E00",
    "embedding": "#009E73",
    "norm": "#999999",
    "other": "#CC79A7",
}

CHOSEN = {
    "chosen": {"linestyle": "-", "linewidth": 1.4},
    "in effect": {"linestyle": "--", "marker": ".", "markersize": 4, "linewidth": 0.8},
}


class Kind(NamedTuple):
    """One kind of tensors in one run; arrays of (reports, tensors).

    Args:
        steps: of the reports.
        bands: (reports of windows apart, BANDS), the mean over tensors in units of white noise.
        low, high: (BANDS,), 95 % interval of the mean over those reports (Student's t); NaN for fewer than two.
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
        """The coefficients and how they move."""
        known = self.coefficient[:, ~np.isnan(self.coefficient).any(0)]
        if not known.size:
            return "none"
        span = _span(known.min(), known.max())
        moved = np.flatnonzero((np.diff(known, axis=0) != 0).any(1)) + 1
        if not len(moved):
            return f"{span} constant"
        if len(moved) == 1 and moved[0] < len(known) - 1:
            return f"{span} constant\nsince step {self.steps[moved[0]]}"
        return f"{span}\nmoves in {(known != known[0]).any(0).sum()} of {known.shape[1]}"


def read(run: str | Path) -> dict[str, Kind]:
    """What a run's microscope saw, by kind.

    Raises:
        UserError: the run has no whole record.
    """
    file = Path(run) / FILE
    if not file.parent.is_dir():
        raise UserError(f"{run} is not the folder of a run")
    if not file.is_file():
        left = f"a run leaves it from the first report after {WINDOW} steps on (trainer.log_every), unless watch=off"
        raise UserError(f"{run} has no {FILE}: {left}")
    try:
        reports = by_step(parquet.read_table(file))
    except (pyarrow.ArrowInvalid, KeyError, OSError) as error:
        raise UserError(f"{file} is damaged: {str(error).splitlines()[0]}") from error
    steps = np.array(list(reports))
    columns = {
        name: np.array([rows[name].to_pylist() for rows in reports.values()])
        for name in ("bands", "lag1", "whiteness", "coefficient", "momentum")
    }
    kinds = np.array(next(iter(reports.values()))["kind"].to_pylist())
    return {
        kind: _kind(steps, {name: x[:, kinds == kind] for name, x in columns.items()})
        for kind in _order(kinds)
    }


def _kind(steps: np.ndarray, seen: dict[str, np.ndarray]) -> Kind:
    """Sums one kind up. Windows that overlap would count twice, so the interval is that of windows apart."""
    apart = [0]
    for i, step in enumerate(steps):
        if step >= steps[apart[-1]] + WINDOW:
            apart.append(i)
    alive = seen["bands"][apart].sum(-1) > 0  # neither without gradient nor NaN
    kept = [seen["bands"][i][own].mean(0) for i, own in zip(apart, alive, strict=True) if own.any()]
    bands = np.array(kept).reshape(-1, BANDS)
    reach = np.full(BANDS, np.nan)
    if len(bands) > 1:
        reach = stdtrit(len(bands) - 1, 0.975) * bands.std(0, ddof=1) * len(bands) ** -0.5
    tested = seen["whiteness"][~np.isnan(seen["whiteness"])]
    lag1, white = np.nanmean(seen["lag1"]), (tested > LEVEL).mean()
    low, high = bands.mean(0) - reach, bands.mean(0) + reach
    return Kind(
        steps, bands, low, high, seen["coefficient"], seen["momentum"], float(lag1), float(white)
    )


def table(run: str, kinds: dict[str, Kind]) -> Table:
    """Bands in units of white noise with their intervals, correlation, test and momentum of each kind of a run."""
    shown = Table(
        title=run, title_justify="left", title_style="bold", box=box.SIMPLE, padding=(0, 1, 0, 0)
    )
    bands = [f"band {i + 1}" for i in range(BANDS)]
    for column in ("kind", *bands, "lag 1", "white", "in effect", "momentum chosen"):
        shown.add_column(
            column,
            justify="left" if column in ("kind", "momentum chosen") else "right",
            no_wrap=True,
        )
    for name, kind in kinds.items():
        cells = [
            f"{mean:.2f}" + ("" if np.isnan(low) else f"\n{low:.2f}-{high:.2f}")
            for mean, low, high in zip(kind.bands.mean(0), kind.low, kind.high, strict=True)
        ]
        effect = _span(*np.nanquantile(kind.momentum, [0.1, 0.9]))
        shown.add_row(
            name, *cells, f"{kind.lag1:+.3f}", f"{100 * kind.white:.0f} %", effect, kind.choice
        )
    return shown


def draw(runs: dict[str, dict[str, Kind]], file: Path) -> None:
    """Draws of each run the spectra above and the momentum over the steps below, four runs side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 9,
        "axes.titlesize": 9,
    }
    columns = min(len(runs), ACROSS)
    with pyplot.rc_context(style):
        size = (2.9 * columns + 1.2, 6.2 * -(-len(runs) // columns))
        figure, axes = pyplot.subplots(
            2 * -(-len(runs) // columns), columns, figsize=size, squeeze=False
        )
        figure.set_layout_engine("constrained")
        uppers, lowers = axes[::2].flatten(), axes[1::2].flatten()
        for i, (run, kinds) in enumerate(runs.items()):
            if i:  # before anything is drawn, so that the limits hold all runs
                uppers[i].sharey(uppers[0])
                lowers[i].sharey(lowers[0])
            _draw_run(uppers[i], lowers[i], run, kinds)
        for axis in (*uppers[len(runs) :], *lowers[len(runs) :]):
            axis.set_axis_off()
        uppers[0].set_ylim(0, None)
        for upper, lower in zip(uppers[::columns], lowers[::columns], strict=True):
            upper.set_ylabel("power of gradients, white noise = 1")
            lower.set_ylabel("momentum")
        for label, line in CHOSEN.items():
            lowers[0].plot([], [], color="black", label=f"momentum {label}", **line)
        handles = {
            label: h
            for axis in axes.flat
            for h, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncols=max(2, 2 * columns),
            frameon=False,
        )
        figure.savefig(file, dpi=150)
        pyplot.close(figure)


def _draw_run(upper, lower, run: str, kinds: dict[str, Kind]) -> None:
    upper.set_title(run.replace(",", "\n"))
    upper.axhline(1, color="black", linewidth=0.8, linestyle=":", label="white noise")
    for name, kind in kinds.items():
        _draw_bands(upper, name, kind)
        _draw_momentum(lower, name, kind)
    upper.set(xlabel="frequency, cycles a step", xlim=(0, 0.5))
    lower.set_xlabel("step")


def _draw_bands(axis, name: str, kind: Kind) -> None:
    centres = [
        (start + stop - 1) / 2 / WINDOW for start, stop in edges("equal", WINDOW // 2 + 1, BANDS)
    ]
    axis.fill_between(centres, kind.low, kind.high, color=COLOURS[name], alpha=0.2, linewidth=0)
    axis.plot(
        centres, kind.bands.mean(0), color=COLOURS[name], marker="o", markersize=3, label=name
    )


def _draw_momentum(axis, name: str, kind: Kind) -> None:
    if not np.isnan(kind.coefficient).all():
        axis.plot(
            kind.steps, np.nanmean(kind.coefficient, 1), color=COLOURS[name], **CHOSEN["chosen"]
        )
    axis.plot(
        kind.steps, np.nanmedian(kind.momentum, 1), color=COLOURS[name], **CHOSEN["in effect"]
    )


def _order(kinds: np.ndarray) -> list[str]:
    return [kind for kind in COLOURS if kind in kinds]


def _span(low: float, high: float) -> str:
    return f"{low:.3f}" if high - low < 5e-4 else f"{low:.3f}-{high:.3f}"


def main() -> int:
    """Prints the table and draws the picture; returns the exit status."""
    parser = Parser(prog="python -m famx.spectra", description="What the microscope saw in runs.")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="the folder of a run or a sweep")
    parser.add_argument(
        "--png", type=Path, help="where the picture goes; spectra.png beside the runs if not given"
    )
    arguments = parser.parse_args()
    folders = find_runs(arguments.runs)
    runs = {str(folder): read(folder) for folder in folders}
    shared = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    file = files.check_png_path(arguments.png or shared / "spectra.png")
    named = {
        str(folder.resolve().relative_to(shared)) if len(folders) > 1 else shared.name: folder
        for folder in folders
    }
    runs = {name: runs[str(folder)] for name, folder in named.items()}
    console = Console(highlight=False, width=max(WIDTH, Console().width))
    console.print(
        "Power of gradients over the steps, white noise = 1; band 1 is the slowest.\n"
        f"95 % intervals from {2 * WINDOW} steps on: of reports that lie {WINDOW} steps apart."
    )
    for name, kinds in runs.items():
        console.print(table(name, kinds))
    with files.report_os_errors(file):
        draw(runs, file)
    console.print(f"picture: {file}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    run_command(main)
