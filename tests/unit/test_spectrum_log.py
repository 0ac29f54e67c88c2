"""Reports of the optimizer probe are stored, resumed and drawn by the names of tensors."""

from pathlib import Path

import pytest
import torch
from pyarrow import parquet
from torch import Tensor

from famx.monitoring.spectrum_log import SpectrumLog

NAMES = ["embedding", "linear.weight", "norm.weight"]
KINDS = ["embedding", "other", "norm"]
STEPS = [32, 64, 96]


def random_report() -> dict[str, Tensor]:
    report = {name: torch.rand(len(NAMES)) for name in ("lag1", "whiteness", "momentum")}
    return report | {"bands": torch.rand(len(NAMES), 8)}


def written_log(file: Path) -> SpectrumLog:
    log = SpectrumLog(file, NAMES, KINDS)
    for step in STEPS:
        log.add(step, random_report())
    log.write()
    return log


def test_a_report_returns_a_curve_of_each_metric_and_kind(tmp_path):
    log = SpectrumLog(tmp_path / "spectrum.parquet", NAMES, KINDS)
    report = random_report()
    curves = log.add(32, report)
    metrics = ("slow", "fast", "white", "lag1", "momentum")
    assert curves.keys() == {f"probe/{metric}/{kind}" for metric in metrics for kind in KINDS}
    assert curves["probe/lag1/norm"] == pytest.approx(report["lag1"][2].item())
    assert curves["probe/slow/other"] == pytest.approx(report["bands"][1, :2].mean().item())
    assert curves["probe/fast/other"] == pytest.approx(report["bands"][1, 6:].mean().item())


def test_a_tensor_without_gradient_is_in_no_curve(tmp_path):
    log = SpectrumLog(tmp_path / "spectrum.parquet", ["one", "two"], ["other", "other"])
    bands = torch.tensor([[1.0] * 8, [0.0] * 8])
    curves = log.add(32, {"bands": bands, "whiteness": torch.tensor([0.5, torch.nan])})
    assert curves == {"probe/slow/other": 1, "probe/fast/other": 1, "probe/white/other": 1}


def test_the_file_has_a_row_for_each_tensor_and_report(tmp_path):
    log = written_log(tmp_path / "spectrum.parquet")
    rows = parquet.read_table(log.file).to_pylist()
    assert len(rows) == len(STEPS) * len(NAMES)
    (row,) = [row for row in rows if row["tensor"] == "linear.weight" and row["step"] == 64]
    assert row["kind"] == "other"
    assert row["lag1"] == pytest.approx(log.reports[64]["lag1"][1].item())
    assert row["bands"] == pytest.approx(log.reports[64]["bands"][1].tolist())


def test_a_resumed_log_has_the_reports_up_to_its_step(tmp_path):
    log = written_log(tmp_path / "spectrum.parquet")
    resumed = SpectrumLog(log.file, NAMES, KINDS, step=64)
    assert list(resumed.reports) == [32, 64]
    for metric, values in log.reports[32].items():
        assert torch.equal(resumed.reports[32][metric], values)
    resumed.write()
    assert set(parquet.read_table(log.file)["step"].to_pylist()) == {32, 64}


def test_a_new_run_removes_the_file(tmp_path):
    log = written_log(tmp_path / "spectrum.parquet")
    assert SpectrumLog(log.file, NAMES, KINDS).reports == {}
    assert not log.file.exists()


def test_a_damaged_file_is_replaced_with_a_warning(tmp_path, caplog):
    log = written_log(tmp_path / "spectrum.parquet")
    log.file.write_bytes(log.file.read_bytes()[:-20] + b"\0" * 20)
    assert SpectrumLog(log.file, NAMES, KINDS, step=32).reports == {}
    assert f"{log.file} is damaged" in caplog.text


def test_an_image_has_a_row_a_tensor_and_a_column_a_report(tmp_path):
    log = written_log(tmp_path / "spectrum.parquet")
    image = log.images()["probe/lag1"]
    assert image.rows == tuple(NAMES)
    assert image.columns == "steps 32 to 96"
    assert torch.equal(image.values[:, 1], log.reports[64]["lag1"])


def test_images_of_a_long_run_have_64_columns(tmp_path):
    log = SpectrumLog(tmp_path / "spectrum.parquet", NAMES, KINDS)
    assert log.images() == {}
    for step in range(200):
        log.add(step, random_report())
    image = log.images()["probe/lag1"]
    assert image.values.shape == (3, 64)
    assert torch.equal(image.values[:, -1], log.reports[199]["lag1"])
