"""`python -m famx.spectra` summarises what the optimizer probe stored, and draws it."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from famx import spectra
from famx.analysis import spectra_plot
from famx.analysis.spectra import KindSummary, read_spectra, summarise
from famx.monitoring.spectrum_log import SpectrumLog
from famx.notation import UserError


def write_spectra(
    folder: Path,
    coefficient: Callable[[int], float] = lambda step: 0.9,
    bands: Callable[[int], float] = lambda step: 1.0,
    steps: Iterable[int] = range(32, 32 * 9, 32),
) -> Path:
    """Writes reports of two convolutions, the first with this momentum and power, and a norm."""
    folder.mkdir()
    log = SpectrumLog(folder / "spectrum.parquet", ["a", "b", "c"], ["conv", "conv", "norm"])
    for step in steps:
        report = {name: torch.rand(3) for name in ("lag1", "whiteness", "momentum", "cosine")}
        report["coefficient"] = torch.tensor([coefficient(step), 0.9, 0.9])
        report["bands"] = torch.full((3, 8), float(bands(step)))
        log.add(step, report)
    log.write()
    return folder


def constant_metrics(shape: tuple[int, int]) -> dict[str, np.ndarray]:
    return {name: np.ones(shape) for name in ("lag1", "whiteness", "coefficient", "momentum")}


@pytest.mark.parametrize(
    ("coefficient", "choice"),
    [
        (lambda step: 0.9, "0.900 constant"),
        (lambda step: 0.9 if step < 100 else 0.95, "0.900 to 0.950 constant\nsince step 128"),
        (lambda step: 0.9 if step < 256 else 0.95, "0.900 to 0.950\nmoves in 1 of 2"),
        (lambda step: 0.9 + 0.05 * (step % 64 == 0), "0.900 to 0.950\nmoves in 1 of 2"),
        (lambda step: float("nan"), "0.900 constant"),
    ],
    ids=["constant", "changes once", "changes last", "changes often", "one is undefined"],
)
def test_momentum_is_described_by_its_range_and_changes(tmp_path, coefficient, choice):
    summaries = read_spectra(write_spectra(tmp_path / "run", coefficient))
    assert summaries["conv"].choice == choice
    assert summaries["norm"].choice == "0.900 constant"


def test_no_momentum_is_described_as_none():
    metrics = constant_metrics((4, 2)) | {"bands": np.ones((4, 2, 8))}
    metrics["coefficient"] = np.full((4, 2), np.nan)
    assert summarise(np.arange(32, 160, 32), metrics).choice == "none"


def test_the_interval_includes_the_mean_over_windows(tmp_path):
    run = write_spectra(tmp_path / "run", bands=lambda step: 1 + (step % 64 == 0))
    summary = read_spectra(run)["conv"]
    assert summary.bands.mean(0) == pytest.approx([1.5] * 8)
    assert (summary.low >= 1).all()
    assert (summary.low < 1.5).all()
    assert (summary.high > 1.5).all()


def test_tensors_without_gradient_are_omitted():
    bands = np.full((4, 2, 8), 2.0)
    bands[1, 0] = np.nan  # a skipped step
    bands[2] = 0  # no gradient
    summary = summarise(np.arange(32, 160, 32), constant_metrics((4, 2)) | {"bands": bands})
    assert summary.bands.mean(0) == pytest.approx([2.0] * 8)
    assert len(summary.bands) == 3


def test_bands_are_of_windows_that_do_not_overlap(tmp_path):
    summary = read_spectra(write_spectra(tmp_path / "run", steps=range(32, 97, 4)))["conv"]
    assert len(summary.steps) == 17
    assert len(summary.bands) == 3


@pytest.mark.parametrize("n_windows", [2, 4, 12])
def test_the_interval_covers_the_truth_as_often_as_it_says(n_windows):
    rng = np.random.default_rng(0)
    steps = np.arange(32, 32 * n_windows + 1, 32)
    covered = []
    for _ in range(60):
        bands = 1 + 0.1 * rng.standard_normal((n_windows, 1, 8))
        summary = summarise(steps, constant_metrics((n_windows, 1)) | {"bands": bands})
        covered.append((summary.low <= 1) & (summary.high >= 1))
    assert 0.92 < np.mean(covered) < 0.98


def test_runs_have_tables_and_one_picture(tmp_path, monkeypatch, capsys):
    folders = [write_spectra(tmp_path / name) for name in ("one", "two")]
    monkeypatch.setattr(sys, "argv", ["spectra", *map(str, folders)])
    assert spectra.main() == 0
    output = capsys.readouterr().out
    assert output.count("constant") == 4
    assert "band 8" in output
    assert "1.00 to 1.00" in output
    assert (tmp_path / "spectra.png").read_bytes().startswith(b"\x89PNG")


def test_all_runs_have_the_same_scale_which_includes_the_largest(tmp_path, monkeypatch):
    axes = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda figure, *_, **__: axes.extend(figure.axes)
    )
    runs: dict[str, dict[str, KindSummary]] = {}
    for name, power in (("quiet", 1.0), ("loud", 3.0)):
        run = write_spectra(tmp_path / name, bands=lambda step, power=power: power)
        runs[name] = read_spectra(run)
    spectra_plot.draw(runs, tmp_path / "spectra.png")
    quiet, loud = axes[:2]
    assert quiet.get_ylim() == loud.get_ylim()
    assert loud.get_ylim()[1] > 3


def test_a_run_without_reports_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not the folder of a run"):
        read_spectra(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no spectrum\.parquet"):
        read_spectra(tmp_path)
    (tmp_path / "spectrum.parquet").write_text("not a table")
    with pytest.raises(UserError, match="is damaged"):
        read_spectra(tmp_path)
