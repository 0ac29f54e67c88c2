"""Reports of the optimizer probe are stored, resumed and drawn by the names of tensors."""

from pathlib import Path

import pytest
import torch
from pyarrow import parquet
from torch import Tensor

from famx.monitoring.metrics import RowGroup
from famx.monitoring.spectrum_log import Decision, SpectrumLog, read_decisions
from famx.notation import UserError

NAMES = ["embedding", "linear.weight", "norm.weight"]
KINDS = ["embedding", "other", "norm"]
STEPS = [32, 64, 96]
PERIODS = ("32+", "11-16", "6.4-8", "4.6-5.3", "3.6-4", "2.9-3.2", "2.5-2.7", "2-2.3")
BAND_NAMES = {"bands": [PERIODS] * 3, "rule_bands": [("4.6+", "2-4"), PERIODS[:3], ()]}


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
    metrics = ("white", "lag1", "momentum")
    assert curves.keys() == {f"probe/{metric}/{kind}" for metric in metrics for kind in KINDS}
    assert curves["probe/lag1/norm"] == pytest.approx(report["lag1"][2].item())


def test_each_band_of_each_kind_has_a_curve_named_by_its_period(tmp_path):
    log = SpectrumLog(
        tmp_path / "spectrum.parquet",
        ["a", "b"],
        ["other"] * 2,
        band_names={"bands": [PERIODS] * 2},
    )
    bands = torch.rand(2, 8)
    curves = log.add(32, {"bands": bands, "whiteness": torch.rand(2)})
    tags = [tag for tag in curves if tag.startswith("bands/")]
    assert tags == log.curves_of_bands()["other"]
    assert tags[0] == "bands/other_1_32+"
    assert tags[7] == "bands/other_8_2-2.3"
    assert [curves[tag] for tag in tags] == pytest.approx(bands.mean(0).tolist())


def test_a_tensor_without_gradient_is_in_no_curve(tmp_path):
    names = {"bands": [("slow", *"2345678")] * 2}
    log = SpectrumLog(
        tmp_path / "spectrum.parquet", ["one", "two"], ["other", "other"], band_names=names
    )
    bands = torch.tensor([[1.0] * 8, [0.0] * 8])
    curves = log.add(32, {"bands": bands, "whiteness": torch.tensor([0.5, torch.nan])})
    assert curves["bands/other_1_slow"] == 1
    assert len(curves) == 9
    assert set(curves.values()) == {1}


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


def test_rows_of_images_are_grouped_by_kind_and_bands_have_their_periods(tmp_path):
    names = ["x", "y", "z"]
    log = SpectrumLog(
        tmp_path / "spectrum.parquet", names, ["norm", "other", "norm"], band_names=BAND_NAMES
    )
    report = random_report() | {"rule_bands": torch.rand(3, 3)}
    log.add(32, report)
    images = log.images()
    assert images["probe/lag1"].rows == ("x", "z", "y")
    assert images["probe/lag1"].groups == (RowGroup("norm", 2), RowGroup("other", 1))
    assert torch.equal(images["bands/gradients"].values, report["bands"][[0, 2, 1]])
    # the second norm is not measured by the rule
    groups = images["bands/rule"].groups
    assert groups == (RowGroup("norm", 2, ("4.6+", "2-4")), RowGroup("other", 1, PERIODS[:3]))
    assert images["bands/rule"].mark == (1.0, "1 = white noise")


def test_decisions_are_read_as_they_were_made(tmp_path):
    file = tmp_path / "spectrum.parquet"
    log = SpectrumLog(file, NAMES, KINDS, band_names=BAND_NAMES)
    nan = torch.nan
    rule = {
        "rule_bands": torch.tensor([[0.5, 1.5, nan], [0.25, 0.5, 3.0], [nan, nan, nan]]),
        "base": torch.tensor([0.75, 0.5, 0.5]),
        "coefficient": torch.tensor([0.75, 0.875, 0.5]),
        "fired": torch.tensor([0.0, 1.0, 0.0]),
    }
    for step in (32, 64):
        log.add(step, random_report() | rule)
    log.write()
    # a resumed run continues the table
    log = SpectrumLog(file, NAMES, KINDS, step=32, band_names=BAND_NAMES)
    log.add(64, random_report() | rule)
    log.write()
    decisions = read_decisions(file)
    assert [decision.step for decision in decisions] == [32] * 3 + [64] * 3
    assert decisions[0].bands == {"4.6+": 0.5, "2-4": 1.5}
    bands = {"32+": 0.25, "11-16": 0.5, "6.4-8": 3.0}
    assert decisions[4] == Decision(64, NAMES[1], KINDS[1], bands, 0.5, 0.875, True)
    assert decisions[5].bands == {}


def test_decisions_that_cannot_be_read_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.parquet cannot be read"):
        read_decisions(tmp_path / "nowhere.parquet")
    log = written_log(tmp_path / "spectrum.parquet")
    with pytest.raises(UserError, match="its optimizer has no momentum rule"):
        read_decisions(log.file)
