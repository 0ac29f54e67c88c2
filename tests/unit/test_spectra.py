"""What `python -m famx.spectra` reads off the records of runs, and how it tells of it."""

import sys

import numpy as np
import pytest
import torch

from famx import spectra
from famx.monitoring.spectrum_log import SpectrumLog
from famx.notation import UserError


def leave(folder, coefficient, bands=lambda step: 1.0, steps=range(32, 32 * 9, 32)):
    """A run's record: two convolutions and a norm whose momentum is `coefficient(step)`."""
    folder.mkdir()
    record = SpectrumLog(folder, ["a", "b", "c"], ["conv", "conv", "norm"])
    for step in steps:
        per_tensor = {name: torch.rand(3) for name in ("lag1", "whiteness", "momentum", "cosine")}
        chosen = torch.tensor([coefficient(step), 0.9, 0.9])
        record.add(
            step,
            per_tensor | {"coefficient": chosen, "bands": torch.full((3, 8), float(bands(step)))},
        )
    record.write()
    return folder


def test_a_rule_that_never_moves_is_called_constant(tmp_path):
    still = spectra.read(leave(tmp_path / "still", lambda step: 0.9))
    assert still["conv"].choice == still["norm"].choice == "0.900 constant"
    once = spectra.read(leave(tmp_path / "once", lambda step: 0.9 if step < 100 else 0.95))
    assert (
        once["conv"].choice == "0.900-0.950 constant\nsince step 128"
        and once["norm"].choice == "0.900 constant"
    )
    last = spectra.read(leave(tmp_path / "last", lambda step: 0.9 if step < 256 else 0.95))
    assert last["conv"].choice == "0.900-0.950\nmoves in 1 of 2"
    moving = spectra.read(leave(tmp_path / "moving", lambda step: 0.9 + 0.05 * (step % 64 == 0)))
    assert moving["conv"].choice == "0.900-0.950\nmoves in 1 of 2"
    none = spectra.read(leave(tmp_path / "none", lambda step: float("nan")))
    assert none["conv"].choice == "0.900 constant"


def test_the_interval_covers_the_mean_of_windows_apart(tmp_path):
    kind = spectra.read(
        leave(tmp_path / "run", lambda step: 0.9, lambda step: 1 + (step % 64 == 0))
    )["conv"]
    assert kind.bands.mean(0) == pytest.approx([1.5] * 8)
    assert (kind.low < 1.5).all() and (kind.high > 1.5).all() and (kind.low >= 1).all()
    with_nan = np.full((4, 2, 8), 2.0)
    with_nan[1, 0], with_nan[2] = (
        np.nan,
        0,
    )  # a cancelled step in one of them, and later no gradient at all
    series = {name: np.ones((4, 2)) for name in ("lag1", "whiteness", "coefficient", "momentum")}
    assert spectra._kind(np.arange(32, 160, 32), series | {"bands": with_nan}).bands.mean(
        0
    ) == pytest.approx([2.0] * 8)
    overlapping = spectra.read(leave(tmp_path / "often", lambda step: 0.9, steps=range(32, 97, 4)))[
        "conv"
    ]
    assert len(overlapping.bands) == 3 and len(overlapping.steps) == 17


@pytest.mark.parametrize("windows", [2, 4, 12])
def test_the_interval_covers_the_truth_as_often_as_it_says(windows):
    rng, covered = np.random.default_rng(0), []
    series = {
        name: np.ones((windows, 1)) for name in ("lag1", "whiteness", "coefficient", "momentum")
    }
    for _ in range(60):
        bands = 1 + 0.1 * rng.standard_normal((windows, 1, 8))
        kind = spectra._kind(np.arange(32, 32 * windows + 1, 32), series | {"bands": bands})
        covered.append((kind.low <= 1) & (kind.high >= 1))
    assert 0.92 < np.mean(covered) < 0.98


def test_runs_are_told_in_a_table_and_drawn_in_one_picture(tmp_path, monkeypatch, capsys):
    folders = [leave(tmp_path / name, lambda step: 0.9) for name in ("one", "two")]
    monkeypatch.setattr(sys, "argv", ["spectra", *map(str, folders)])
    assert spectra.main() == 0
    told = capsys.readouterr().out
    assert told.count("constant") == 4 and "band 8" in told and "1.00-1.00" in told
    assert (tmp_path / "spectra.png").read_bytes().startswith(b"\x89PNG")


def test_the_scale_that_runs_share_holds_the_loudest(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda figure, *_, **__: drawn.extend(figure.axes)
    )
    power = {"quiet": 1.0, "loud": 3.0}
    runs = {
        k: spectra.read(leave(tmp_path / k, lambda step: 0.9, lambda step, v=v: v))
        for k, v in power.items()
    }
    spectra.draw(runs, tmp_path / "spectra.png")
    quiet, loud = drawn[:2]
    assert quiet.get_ylim() == loud.get_ylim() and loud.get_ylim()[1] > 3


def test_a_run_without_a_record_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="is not the folder of a run"):
        spectra.read(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no spectrum\.parquet"):
        spectra.read(tmp_path)
    (tmp_path / "spectrum.parquet").write_text("not a table")
    with pytest.raises(UserError, match="is damaged"):
        spectra.read(tmp_path)
