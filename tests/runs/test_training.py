"""Whole runs on a corpus of tones: they learn, stop, and resume exactly."""

import json
import logging
import shlex
import signal
import socket
import sys
from importlib import metadata

import pytest
import torch
import yaml
from pyarrow import parquet
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tones import TONES, reported_values, saved_weights, stopped_at, tones_config

import famx
from famx.config.command import show_warnings
from famx.data._fingerprint import digest_of
from famx.data.manifest import Manifest
from famx.experiment import report
from famx.experiment.build import build_experiment
from famx.experiment.resolve import resolve
from famx.experiment.run import run
from famx.monitoring.heatmap import ROW_HEIGHT
from famx.training import checkpoint


def assert_equal_weights(folder, expected_folder):
    expected = saved_weights(expected_folder)
    for name, value in saved_weights(folder).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["loader.workers=0", "trainer.ema=0.9"],
        ["loader.workers=2", "trainer.ema=0.9"],
        # averaged over the last five of seven steps
        ["loader.workers=0", "trainer.tail_average=0.6", "task.consistency=0.2"],
    ],
)
def test_resumed_run_equals_an_unbroken_one(corpus, tmp_path, words):
    words = ["trainer.accumulate=2", *words]
    unbroken = tmp_path / "unbroken"
    run(tones_config(corpus, *words), unbroken)
    expected_best = checkpoint.load(unbroken / "checkpoints", "best")
    for step, number in ((1, signal.SIGINT), (3, signal.SIGTERM), (6, signal.SIGTERM)):
        folder = tmp_path / f"stopped{step}"
        with stopped_at(step, number):
            assert run(tones_config(corpus, *words), folder)["stopped_by"] == number
        assert checkpoint.load(folder / "checkpoints")["step"] == step
        run(tones_config(corpus, *words), folder, resume=True)
        for tag in ("train/loss", "train/grad_norm", "dev/loss", "dev/wer"):
            assert reported_values(folder, tag) == reported_values(unbroken, tag), tag
        best = checkpoint.load(folder / "checkpoints", "best")
        assert best["step"] == expected_best["step"]
        for name, value in best["averaged"].items():
            assert torch.equal(value, expected_best["averaged"][name]), name
        assert_equal_weights(folder, unbroken)


@pytest.mark.slow
def test_probe_changes_no_weight_and_its_log_continues_on_resume(corpus, tmp_path):
    words = ["trainer.max_steps=44", "trainer.log_every=4", "trainer.eval_every=22"]
    for level in ("off", "light", "full"):
        run(tones_config(corpus, *words, f"probe={level}"), tmp_path / level)
        assert_equal_weights(tmp_path / level, tmp_path / "off")
    assert not (tmp_path / "off" / "spectrum.parquet").exists()

    # stopped before and after the first report of the probe
    unbroken = tmp_path / "light"
    for step in (20, 38):
        folder = tmp_path / f"stopped{step}"
        with stopped_at(step, signal.SIGTERM):
            run(tones_config(corpus, *words), folder)
        run(tones_config(corpus, *words), folder, resume=True)
        table = parquet.read_table(folder / "spectrum.parquet")
        assert table.equals(parquet.read_table(unbroken / "spectrum.parquet"))
        assert set(table["step"].to_pylist()) == {32, 36, 40, 44}
        tag = "probe/lag1/norm"
        assert reported_values(folder, tag) == reported_values(unbroken, tag)
        assert (folder / "groups.tsv").read_bytes() == (unbroken / "groups.tsv").read_bytes()
    groups = (unbroken / "groups.tsv").read_text().splitlines()
    assert groups[0].startswith("kind\ttensors\tparameters")
    assert len(groups) == 5


@pytest.mark.slow
def test_run_learns_and_writes_all_its_files(corpus, tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["trainer.max_steps=150", "trainer.eval_every=50", "optim.lr=1e-2", "layer.dropout=0"]
    words += ["model.d_model=32", "frontend.channels=8", "loader.speed=[1.0]", "loader.mel_masks=0"]
    latest = run(tones_config(corpus, *words), folder)
    assert latest["test/cer"] < 0.2
    names = ("config.yaml", "metrics.jsonl", "famx.log", "hypotheses.test.tsv", "scores.test.json")
    for name in names:
        assert (folder / name).is_file(), name
    assert list(folder.glob("events*"))
    assert (folder / "hypotheses.test.tsv").read_text().startswith("id\tref\thyp\n")
    scores = json.loads((folder / "scores.test.json").read_text())
    assert scores["normaliser"] == "basic"
    assert scores["decoder"]["name"] == "ctc_greedy"
    assert scores["data"] == digest_of(Manifest("test", 0, root=str(corpus)).fingerprint())
    assert scores["cer"]["rate"] == latest["test/cer"]
    assert f"python -m famx.evaluate {folder}" in capsys.readouterr().out
    (text,) = famx.load(folder).transcribe([corpus / "train0.wav"])
    assert set(text) <= set(TONES)


@pytest.mark.parametrize(
    ("words", "compares_views"),
    [
        ([], True),
        (["task.consistency=0"], False),
        # options of masks replace all defaults of small corpora
        (["loader.time_masks=2"], False),
        (["loader.time_masks=2", "task.consistency=0.1"], True),
        (["task=seq2seq"], False),
    ],
)
def test_ctc_compares_two_views_of_a_small_corpus(words, compares_views, corpus, capsys):
    config = resolve(tones_config(corpus, *words))
    experiment = build_experiment(config, torch.device("cpu"))
    loader = experiment.loader("train")
    _, _, batch = next(loader.train_batches())
    assert (batch.other_spans is not None) == compares_views
    Console(width=200).print(report.model_table(experiment))
    assert ("two views of each recording" in capsys.readouterr().out) == compares_views


def test_evaluation_writes_images_of_every_layer_over_time(corpus, tmp_path):
    words = ["attention=worm", "layer=skip", "model.n_layers=2"]
    words += ["trainer.max_steps=2", "trainer.eval_every=1"]
    run(tones_config(corpus, *words), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    n_rows = {
        "attention/over_time/nodes": 4,
        "attention/over_time/span": 4,
        "layer/over_time/visit": 2,
    }
    for tag, n in n_rows.items():
        first, second = events.Images(tag)
        assert (first.step, second.step) == (1, 2)
        assert first.height == second.height == (n + 3) * ROW_HEIGHT
    tags = events.Tags()
    assert "train/audio_per_second" in tags["scalars"]
    texts = {"how to read this/text_summary", "dev/samples/text_summary"}
    texts.add("_hparams_/session_start_info")
    assert set(tags["tensors"]) == texts


def test_settings_of_a_run_are_hyperparameters_in_tensorboard(corpus, tmp_path):
    run(tones_config(corpus, "layer=skip", "trainer.max_steps=1"), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    tags = {tag for tag in events.summary_metadata if tag.startswith("_hparams_")}
    assert tags == {"_hparams_/session_start_info"}
    settings = report.hparams(yaml.safe_load((tmp_path / "run/config.yaml").read_text()))
    assert settings["optim.betas"] == "[0.9, 0.98]"
    assert settings["trainer.unit_clip"] == 0.005
    assert "layer" in settings
    assert all(isinstance(value, str | int | float) for value in settings.values())
    assert not [key for key in settings if key.startswith(("finetune", "init_from"))]


def test_a_stopped_run_has_its_row_of_hyperparameters_and_results(corpus, tmp_path):
    folder = tmp_path / "run"
    with stopped_at(5, signal.SIGTERM):
        run(tones_config(corpus, "trainer.max_steps=7"), folder)
    # the last evaluation was in step 3
    best = reported_values(folder, "dev/wer")[3]
    events = EventAccumulator(str(folder)).Reload()
    assert "_hparams_/session_start_info" in events.summary_metadata
    assert events.Scalars("Results/best dev wer")[-1].value == pytest.approx(best)
    assert events.Scalars("Results/training steps")[-1].value == 5
    # the results of the complete run follow
    run(tones_config(corpus, "trainer.max_steps=7"), folder, resume=True)
    # files of one second are read in the order of their names, so no event may be purged
    events = EventAccumulator(str(folder), purge_orphaned_data=False).Reload()
    assert max(event.value for event in events.Scalars("Results/training steps")) == 7
    assert events.Scalars("Results/test wer")
    assert "test/wer" in (folder / "famx.log").read_text()


def test_a_run_says_for_each_start_where_it_comes_from(corpus, tmp_path):
    folder = tmp_path / "run"
    with stopped_at(2, signal.SIGTERM):
        run(tones_config(corpus), folder)
    run(tones_config(corpus), folder, resume=True)
    lines = (folder / "provenance.jsonl").read_text().splitlines()
    assert len(lines) == 2
    facts = json.loads(lines[0])
    assert facts["command"] == shlex.join(sys.orig_argv)
    assert facts["torch"] == metadata.version("torch")
    assert facts["host"] == socket.gethostname()
    assert facts["device"] == "cpu"
    assert f"command: {facts['command']}" in (folder / "famx.log").read_text()


def test_warnings_from_before_the_training_are_in_the_log(corpus, tmp_path):
    with show_warnings():
        logging.getLogger("famx.data").warning("a recording is silent")
        run(tones_config(corpus, "trainer.max_steps=1"), tmp_path / "run")
    assert "before training: a recording is silent" in (tmp_path / "run" / "famx.log").read_text()


@pytest.mark.parametrize("word", ["trainer.ema=0.5", "trainer.tail_average=0.5"])
def test_averaged_weights_are_scored_at_the_end(corpus, tmp_path, word):
    # better with every step
    words = ["optim.lr=3e-3", "trainer.max_steps=12", "trainer.eval_every=4", word]
    run(tones_config(corpus, *words), tmp_path / "run")
    saved = checkpoint.load(tmp_path / "run" / "checkpoints", "best")
    loaded = famx.load(tmp_path / "run").experiment.model.state_dict()
    for name, value in loaded.items():
        assert torch.equal(value, saved["averaged"][f"module.{name}"]), name
    assert any(not torch.equal(value, saved["model"][name]) for name, value in loaded.items())
    scores = json.loads((tmp_path / "run" / "scores.test.json").read_text())
    n_steps = saved["averaged"]["n_averaged"]
    assert n_steps == (saved["step"] if "ema" in word else 6)
    assert scores["weights"] == f"step {saved['step']}, averaged over {n_steps} steps"


def test_weights_before_the_tail_of_a_run_are_scored_as_they_are(corpus, tmp_path):
    with stopped_at(3, signal.SIGTERM):
        run(tones_config(corpus, "trainer.tail_average=0.5"), tmp_path / "run")
    saved = checkpoint.load(tmp_path / "run" / "checkpoints")
    recognizer = famx.load(tmp_path / "run")
    for name, value in recognizer.experiment.model.state_dict().items():
        assert torch.equal(value, saved["model"][name]), name
    assert recognizer.evaluate().weights == "step 3"


def test_patience_ends_a_run_that_no_longer_improves(corpus, tmp_path):
    words = ["optim.lr=0", "trainer.patience=2", "trainer.eval_every=1", "trainer.max_steps=50"]
    run(tones_config(corpus, *words), tmp_path / "run")
    assert max(reported_values(tmp_path / "run", "dev/loss")) == 3
    # a run that resumes counts the evaluations before it stopped
    with stopped_at(2, signal.SIGTERM):
        run(tones_config(corpus, *words), tmp_path / "stopped")
    run(tones_config(corpus, *words), tmp_path / "stopped", resume=True)
    assert max(reported_values(tmp_path / "stopped", "dev/loss")) == 3


@pytest.mark.slow
def test_max_time_fixes_the_number_of_steps(corpus, tmp_path):
    run(tones_config(corpus, "trainer.max_steps=null", "trainer.max_time=1"), tmp_path / "run")
    saved = checkpoint.load(tmp_path / "run" / "checkpoints")
    assert saved["trainer"]["total_steps"] == saved["step"]
    assert saved["score"] is not None


@pytest.mark.slow
def test_first_limit_that_is_reached_ends_the_run(corpus, tmp_path):
    words = ["trainer.max_steps=1000000", "trainer.max_time=1"]
    run(tones_config(corpus, *words), tmp_path / "time")
    assert checkpoint.load(tmp_path / "time" / "checkpoints")["step"] < 1000
    run(tones_config(corpus, "trainer.max_steps=3", "trainer.max_time=1000"), tmp_path / "steps")
    assert checkpoint.load(tmp_path / "steps" / "checkpoints")["step"] == 3
