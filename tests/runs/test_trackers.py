"""Settings, curves and scores that a run copies to trackers; trackers that are absent or fail."""

import json
import logging
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from famx.monitoring import trackers
from famx.monitoring.trackers import Mirror, Tracker, check_logger
from famx.notation import UserError
from famx.training.run_dir import RunDir

WORDS = [
    *("task=lm", "data=text", "data.path=text.txt", "data.block=8", "loader.batch_tokens=64"),
    *("model.d_model=16", "model.n_heads=2", "model.n_layers=1"),
    *("trainer.device=cpu", "trainer.log_every=2", "optim.lr=.003"),
]


def trained_and_resumed(logger, folder, **variables):
    """Trains four steps, then four more, in processes of their own."""
    (folder / "text.txt").write_text("to be or not to be " * 50)
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | variables
    run = f"hydra.run.dir={folder / 'run'}"
    first = [*WORDS, f"logger={logger}", "trainer.max_steps=4", run]
    for words in (first, [f"resume={folder / 'run'}", "trainer.max_steps=8"]):
        command = [sys.executable, "-m", "famx.train", *words]
        finished = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert finished.returncode == 0, finished.stderr


def reports(folder):
    """Returns (split, step, loss) of all reports of a run."""
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return {(x["split"], x["step"], x[f"{x['split']}/loss"]) for x in lines}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_settings_curves_and_scores(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    trained_and_resumed("mlflow", tmp_path, MLFLOW_TRACKING_URI=uri)
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("famx")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["optim.lr"] == "0.003"
    assert run.info.status == "FINISHED"
    copied = set()
    for split in ("train", "dev"):
        for point in client.get_metric_history(run.info.run_id, f"{split}/loss"):
            copied.add((split, point.step, point.value))
    assert copied == reports(tmp_path)
    score = json.loads((tmp_path / "run" / "scores.test.json").read_text())["loss"]
    assert run.data.metrics["test/loss"] == score


@pytest.mark.slow
def test_wandb_has_settings_curves_and_scores_offline(tmp_path):
    pytest.importorskip("wandb")
    trained_and_resumed("wandb", tmp_path, WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    _, run_id = (tmp_path / "run" / "tracker.txt").read_text().split()
    # one file for each start
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{run_id}.wandb"] * 2
    for file in files:
        content = file.read_bytes()
        for text in (b"optim.lr", b"train/loss", b"dev/loss", b"test/loss"):
            assert text in content


@pytest.mark.slow
def test_trackio_has_settings_curves_and_scores(tmp_path):
    pytest.importorskip("trackio")
    trained_and_resumed("trackio", tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    with sqlite3.connect(tmp_path / "trackio" / "famx.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
        (config,) = database.execute("SELECT DISTINCT config FROM configs LIMIT 1").fetchone()
    assert json.loads(config)["optim.lr"] == 0.003
    assert len({name for name, _, _ in rows}) == 1
    copied = set()
    tags = set()
    for _, step, text in rows:
        metrics = json.loads(text)
        tags |= metrics.keys()
        for split in ("train", "dev"):
            if f"{split}/loss" in metrics:
                copied.add((split, step, metrics[f"{split}/loss"]))
    assert copied == reports(tmp_path)
    assert "test/loss" in tags


def test_an_absent_tracker_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "absent_tracker", Tracker)
    # also if there is a folder of this name
    (tmp_path / "absent_tracker").mkdir()
    for path in (sys.path, [str(tmp_path), *sys.path]):
        monkeypatch.setattr(sys, "path", path)
        with pytest.raises(UserError, match=r"needs its package: pip install 'famx\[absent_tr"):
            check_logger("absent_tracker")
    with pytest.raises(UserError, match=r"logger=tensorbord: no such tracker; did you mean tensor"):
        check_logger("tensorbord")


class FailingTracker(Tracker):
    """Writes down what it gets, and loses its connection at step 2."""

    def __init__(self, run_id, name, settings):
        if settings.get("refused"):
            raise ConnectionError("no key\nof this account")
        self.id = run_id or "new"
        self.points = []

    def log(self, step, values):
        if step == 2:
            raise ConnectionError("no route to host")
        self.points.append((step, values))

    def finish(self, has_failed):
        raise AssertionError("nothing is sent after a failure")


def test_a_tracker_that_fails_is_named_once_and_training_goes_on(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "famx")
    monkeypatch.setitem(trackers.TRACKERS, "failing", FailingTracker)
    mirror = Mirror("failing", RunDir(tmp_path), "name", {})
    tracker = mirror.tracker
    for step in (1, 2, 3):
        mirror.log(step, {"train/loss": 0.5})
    mirror.finish(has_failed=False)
    assert tracker.points == [(1, {"train/loss": 0.5})]
    (record,) = caplog.records
    assert "logger=failing has failed (ConnectionError: no route to host)" in record.getMessage()


def test_a_resumed_run_continues_the_run_of_its_tracker(tmp_path, monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "failing", FailingTracker)
    for text, expected in (("failing old", "old"), ("other old", "new"), ("failing ../old", "new")):
        (tmp_path / "tracker.txt").write_text(text)
        mirror = Mirror("failing", RunDir(tmp_path), "name", {}, is_new=False)
        assert mirror.tracker.id == expected
    (tmp_path / "tracker.txt").write_text("failing old")
    assert Mirror("failing", RunDir(tmp_path), "name", {}).tracker.id == "new"
    assert (tmp_path / "tracker.txt").read_text() == "failing new\n"


def test_a_tracker_that_cannot_begin_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "failing", FailingTracker)
    with pytest.raises(
        UserError, match=r"^logger=failing cannot begin \(ConnectionError: no key\)"
    ):
        Mirror("failing", RunDir(tmp_path), "name", {"refused": True})
