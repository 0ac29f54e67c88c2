"""Whole runs on a corpus of tones: they learn, stop, resume exactly, and share work."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import soundfile
import torch
import yaml
from hydra import compose, initialize_config_dir
from pyarrow import parquet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import famx
from famx.config.schema import CONF, register_schemas, to_plain
from famx.experiment import report
from famx.experiment.run import run
from famx.inference import Recognizer
from famx.monitoring.heatmap import ROW_HEIGHT
from famx.notation import UserError
from famx.training import checkpoint
from famx.training.loader import LoaderConfig
from famx.training.run_dir import RunDir
from famx.training.trainer import Trainer
from famx.training.trainer_config import TrainerConfig

register_schemas(trainer=TrainerConfig, loader=LoaderConfig)
TONES = {"a": 400, "b": 900, "c": 1700}
TINY = [
    "model.d_model=16",
    "model.n_heads=2",
    "model.n_layers=1",
    "frontend=log_mel",
    "frontend.channels=4",
]
TINY += [
    "trainer.max_steps=7",
    "trainer.log_every=2",
    "trainer.eval_every=3",
    "loader.batch_seconds=4",
    "loader.buckets=2",
]
TINY += ["trainer.device=cpu", "layer.dropout=0.1", "task.vocab_size=0"]


def speak(text, rate=16_000):
    time = np.arange(int(0.15 * rate)) / rate
    gap = np.zeros(int(0.1 * rate))
    tones = [
        np.concatenate([0.3 * np.sin(2 * np.pi * TONES[letter] * time), gap]) for letter in text
    ]
    return np.concatenate(tones).astype("float32")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tones")
    random = np.random.default_rng(0)
    for split, size in {"train": 24, "dev": 6, "test": 6}.items():
        rows = []
        for i in range(size):
            text = "".join(random.choice(list(TONES), random.integers(2, 6)))
            soundfile.write(folder / f"{split}{i}.wav", speak(text), 16_000)
            rows.append(f"{split}{i}.wav\t{text}\tsomeone\n")
        (folder / f"{split}.tsv").write_text("".join(rows))
    return folder


def composed(corpus, *words):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return to_plain(compose("train", ["data=manifest", f"data.root={corpus}", *TINY, *words]))


def reports(folder, tag):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[tag] for line in lines if tag in line}


def weights(folder):
    return checkpoint.load(folder / "checkpoints")["model"]


@contextmanager
def stopped_at(step, number):
    """Sends this process a real signal inside the given training step."""
    train_step = Trainer.train_step

    def stopping(self, batches):
        if self.step + 1 == step:
            os.kill(os.getpid(), number)
        train_step(self, batches)

    Trainer.train_step = stopping
    yield
    Trainer.train_step = train_step


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_run_equals_an_unbroken_one(corpus, tmp_path, workers):
    words = [f"loader.workers={workers}", "trainer.accumulate=2", "trainer.ema=0.9"]
    run(composed(corpus, *words), tmp_path / "unbroken")
    for step, number in ((1, signal.SIGINT), (3, signal.SIGTERM), (6, signal.SIGTERM)):
        folder = tmp_path / f"stopped{step}"
        with stopped_at(step, number):
            assert run(composed(corpus, *words), folder)["stopped_by"] == number
        assert checkpoint.load(folder / "checkpoints")["step"] == step
        run(composed(corpus, *words), folder, resume=True)
        for tag in ("train/loss", "train/grad_norm", "dev/loss", "dev/wer"):
            assert reports(folder, tag) == reports(tmp_path / "unbroken", tag), tag
        best = [
            checkpoint.load(run_folder / "checkpoints", "best")["step"]
            for run_folder in (folder, tmp_path / "unbroken")
        ]
        assert best[0] == best[1]
        expected = weights(tmp_path / "unbroken")
        assert all(torch.equal(value, expected[key]) for key, value in weights(folder).items())


@pytest.mark.slow
def test_probe_changes_no_weight_and_its_log_continues_on_resume(corpus, tmp_path):
    words = ["trainer.max_steps=44", "trainer.log_every=4", "trainer.eval_every=22"]
    for level in ("off", "light", "full"):
        run(composed(corpus, *words, f"probe={level}"), tmp_path / level)
        expected = weights(tmp_path / "off")
        assert all(
            torch.equal(value, expected[key]) for key, value in weights(tmp_path / level).items()
        )
    assert not (tmp_path / "off" / "spectrum.parquet").exists()
    for step in (20, 38):
        folder = tmp_path / f"stopped{step}"
        with stopped_at(step, signal.SIGTERM):
            run(composed(corpus, *words), folder)
        run(composed(corpus, *words), folder, resume=True)
        table = parquet.read_table(folder / "spectrum.parquet")
        assert table.equals(parquet.read_table(tmp_path / "light" / "spectrum.parquet"))
        assert set(table["step"].to_pylist()) == {32, 36, 40, 44}
        assert reports(folder, "probe/lag1/norm") == reports(tmp_path / "light", "probe/lag1/norm")
    groups = (tmp_path / "light" / "groups.tsv").read_text().splitlines()
    assert groups[0].startswith("kind\ttensors\tparameters") and len(groups) == 5


@pytest.mark.slow
def test_run_learns_and_writes_all_its_files(corpus, tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["trainer.max_steps=150", "trainer.eval_every=50", "optim.lr=1e-2", "layer.dropout=0"]
    words += ["model.d_model=32", "frontend.channels=8", "loader.speed=[1.0]", "loader.mel_masks=0"]
    last = run(composed(corpus, *words), folder)
    assert last["test/cer"] < 0.2
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "famx.log",
        "hypotheses.test.tsv",
        "scores.test.json",
    ):
        assert (folder / name).is_file(), name
    assert list(folder.glob("events*"))
    assert (folder / "hypotheses.test.tsv").read_text().startswith("id\tref\thyp\n")
    scores = json.loads((folder / "scores.test.json").read_text())
    assert scores["normaliser"] == "basic" and scores["cer"]["rate"] == last["test/cer"]
    assert f"python -m famx.evaluate {folder}" in capsys.readouterr().out
    (words,) = famx.load(folder).transcribe([corpus / "train0.wav"])
    assert set(words) <= set(TONES)


def test_recordings_of_any_length_rate_and_channels_are_transcribed(corpus, tmp_path):
    run(composed(corpus), tmp_path / "run")
    recognizer = famx.load(tmp_path / "run")
    long = np.tile(speak("abc"), 60)
    soundfile.write(tmp_path / "long.flac", np.stack([long, long], 1), 16_000)
    soundfile.write(tmp_path / "short.wav", np.zeros(1, "float32"), 44_100)
    assert all(
        isinstance(text, str)
        for text in recognizer.transcribe([tmp_path / "long.flac", tmp_path / "short.wav"])
    )
    with pytest.raises(UserError, match=r"nothing\.wav"):
        recognizer.transcribe([tmp_path / "nothing.wav"])


def test_evaluation_writes_images_of_every_layer_over_time(corpus, tmp_path):
    words = [
        "attention=worm",
        "layer=skip",
        "model.n_layers=2",
        "trainer.max_steps=2",
        "trainer.eval_every=1",
    ]
    run(composed(corpus, *words), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    rows = {
        "attention/over_time/nodes": 4,
        "attention/over_time/span": 4,
        "layer/over_time/visit": 2,
    }
    for tag, count in rows.items():
        first, second = events.Images(tag)
        assert (first.step, second.step) == (1, 2)
        assert first.height == second.height == (count + 3) * ROW_HEIGHT
    assert "train/audio_per_second" in events.Tags()["scalars"] and events.Tags()["tensors"] == [
        "dev/samples/text_summary"
    ]
    hparams = {tag for tag in events.summary_metadata if tag.startswith("_hparams_")}
    assert hparams == {"_hparams_/session_start_info", "_hparams_/session_end_info"}
    settings = report.hparams(yaml.safe_load((tmp_path / "run/config.yaml").read_text()))
    assert (
        settings["optim.betas"] == "[0.9, 0.98]"
        and settings["trainer.unit_clip"] == 0.005
        and "layer" in settings
    )
    assert all(isinstance(value, str | int | float) for value in settings.values())


def test_checkpoint_of_another_model_is_refused(corpus, tmp_path):
    run(composed(corpus, "trainer.max_steps=1"), tmp_path / "run")
    with pytest.raises(UserError, match="is a checkpoint of another model"):
        run(
            composed(corpus, f"init_from={tmp_path / 'run'}", "model.d_model=32"),
            tmp_path / "other",
        )


def test_averaged_weights_are_scored_at_the_end(corpus, tmp_path):
    run(composed(corpus, "trainer.ema=0.5"), tmp_path / "run")
    saved = checkpoint.load(tmp_path / "run" / "checkpoints", "best")
    loaded = famx.load(tmp_path / "run").experiment.model.state_dict()
    assert all(
        torch.equal(value, saved["averaged"][f"module.{key}"]) for key, value in loaded.items()
    )
    assert any(not torch.equal(value, saved["model"][key]) for key, value in loaded.items())


def test_patience_ends_a_run_that_no_longer_improves(corpus, tmp_path):
    words = ["optim.lr=0", "trainer.patience=2", "trainer.eval_every=1", "trainer.max_steps=50"]
    run(composed(corpus, *words), tmp_path / "run")
    assert max(reports(tmp_path / "run", "dev/loss")) == 3
    with stopped_at(2, signal.SIGTERM):
        run(composed(corpus, *words), tmp_path / "stopped")
    run(composed(corpus, *words), tmp_path / "stopped", resume=True)
    assert max(reports(tmp_path / "stopped", "dev/loss")) == 3


def test_max_time_fixes_the_number_of_steps(corpus, tmp_path):
    run(composed(corpus, "trainer.max_steps=null", "trainer.max_time=1"), tmp_path / "run")
    saved = checkpoint.load(tmp_path / "run" / "checkpoints")
    assert saved["trainer"]["total_steps"] == saved["step"] >= 20


@pytest.mark.slow
def test_two_processes_report_the_losses_of_one(corpus, tmp_path):
    words = [
        "data=manifest",
        f"data.root={corpus}",
        *TINY,
        "layer.dropout=0",
        "trainer.max_steps=30",
        "trainer.log_every=1",
    ]
    losses = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        launch = [
            "-m",
            "torch.distributed.run",
            f"--nproc-per-node={processes}",
            "--master-port=0",
            "--standalone",
        ]
        command = [sys.executable, *launch, "-m", "famx.train", *words, f"hydra.run.dir={folder}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=300
        )
        assert result.returncode == 0, result.stderr
        losses.append(list(reports(folder, "train/loss").values()))
    assert len(losses[0]) == 30
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.slow
def test_sweep_trains_a_run_of_each_combination(corpus, tmp_path):
    words = [
        "data=manifest",
        f"data.root={corpus}",
        *TINY,
        "trainer.max_steps=1",
        f"hydra.sweep.dir={tmp_path}/sweep",
    ]
    command = [sys.executable, "-m", "famx.train", "-m", *words, "optim=fam,adamw", "seed=0,1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    runs = sorted(path.parent.name for path in tmp_path.rglob("config.yaml"))
    assert len(runs) == 4 and all("optim=" in name and "seed=" in name for name in runs)
    (printed, *_) = [line for line in result.stdout.splitlines() if "famx.compare" in line]
    compared = subprocess.run(
        [sys.executable, *shlex.split(printed)[1:]], capture_output=True, text=True, timeout=120
    )
    assert compared.returncode == 0 and "optim=adamw" in compared.stdout, compared.stderr


@pytest.mark.slow
def test_evaluate_and_transcribe_work_from_the_command_line(corpus, tmp_path):
    folder = tmp_path / "run"
    run(composed(corpus), folder)

    def command(name, *words):
        line = [sys.executable, "-m", f"famx.{name}", *map(str, words)]
        return subprocess.run(line, capture_output=True, text=True, timeout=120)

    scored = command("evaluate", folder, "--split", "dev")
    assert (
        scored.returncode == 0 and "WER" in scored.stdout and (folder / "scores.dev.json").is_file()
    )
    transcribed = command("transcribe", folder, corpus / "test0.wav", "decode=ctc_greedy")
    assert transcribed.returncode == 0 and transcribed.stdout.startswith(
        f"{corpus / 'test0.wav'}\t"
    )
    refused = command("evaluate", folder, "decode=lm_greedy")
    assert refused.returncode == 2 and "decode=ctc_greedy" not in refused.stdout
    refused = command("evaluate", tmp_path)
    assert refused.returncode == 2 and len(refused.stderr.strip().splitlines()) == 1


def test_every_split_is_read_before_the_first_step(corpus, tmp_path):
    with pytest.raises(UserError, match=r"there is no manifest .*nothing\.tsv"):
        run(composed(corpus, "data.test=nothing.tsv"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_folder_is_locked_while_a_run_trains_in_it(tmp_path):
    run_dir = RunDir(tmp_path / "run")
    with run_dir.lock(resume=False):
        for resume in (False, True):
            with pytest.raises(UserError, match="is in use"), run_dir.lock(resume):
                pass
    with run_dir.lock(resume=True):
        pass
    with pytest.raises(UserError, match="it has saved no checkpoint"), run_dir.lock(resume=False):
        pass
    (run_dir.checkpoints / "step-1").mkdir()
    with pytest.raises(UserError, match="continue it with resume="), run_dir.lock(resume=False):
        pass


def test_run_resumes_without_its_init_from_and_with_damaged_logs(corpus, tmp_path, caplog):
    run(composed(corpus), tmp_path / "source")
    words = ["trainer.max_steps=4", "trainer.log_every=1", "probe=light"]
    run(composed(corpus, *words, f"init_from={tmp_path / 'source'}"), tmp_path / "run")
    shutil.rmtree(tmp_path / "source")
    (tmp_path / "run" / "spectrum.parquet").write_text("junk")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as stream:
        stream.write("3\n")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    longer = config | {"trainer": config["trainer"] | {"max_steps": 6}}
    assert (tmp_path / "run" / "scores.test.json").exists()
    with stopped_at(5, signal.SIGTERM):
        run(longer, tmp_path / "run", resume=True)
    assert not list((tmp_path / "run").glob("*.test.*"))  # the scores were of the shorter training
    run(longer, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "scores.test.json").exists()
    assert list(reports(tmp_path / "run", "train/loss")) == [1, 2, 3, 4, 5, 6]
    assert any("spectrum.parquet is damaged" in record.getMessage() for record in caplog.records)
    with pytest.raises(UserError, match=r"max_steps=5 is less than the 6 steps"):
        run(
            config | {"trainer": config["trainer"] | {"max_steps": 5}},
            tmp_path / "run",
            resume=True,
        )


def test_first_recording_may_be_one_that_fails_only_in_decoding(corpus, tmp_path):
    folder = tmp_path / "spoiled"
    shutil.copytree(corpus, folder)
    for name in ("train0.wav", "test0.wav"):
        signal, rate = soundfile.read(folder / name)
        signal[9] = np.nan
        soundfile.write(folder / name, signal, rate, subtype="FLOAT")
    last = run(composed(folder, "data.skip_bad=true"), tmp_path / "run")
    assert "test/wer" in last
    shutil.copy(corpus / "train0.wav", folder)
    with pytest.raises(
        UserError,
        match=r"test0\.wav holds samples that are not finite; the run is trained and saved",
    ):
        run(composed(folder), tmp_path / "other")
    assert checkpoint.load(tmp_path / "other" / "checkpoints")["step"] == 7


def test_text_too_long_for_its_frames_is_refused_in_every_split(corpus, tmp_path):
    folder = tmp_path / "long"
    shutil.copytree(corpus, folder)
    with (folder / "dev.tsv").open("a") as stream:
        stream.write("dev0.wav\t" + 99 * "ab" + "\n")
    with pytest.raises(UserError, match="more than CTC can emit"):
        run(composed(folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_checkpoints_get_score_files_of_their_own(corpus, tmp_path):
    run(composed(corpus), tmp_path / "run")
    before = (tmp_path / "run" / "scores.test.json").read_text()
    Recognizer(tmp_path / "run", "last").evaluate("test")
    assert (tmp_path / "run" / "scores.test.json").read_text() == before
    assert (tmp_path / "run" / "scores.test.last.json").exists()


def test_what_is_left_out_is_told_once(corpus, tmp_path, caplog):
    folder = tmp_path / "spoiled"
    shutil.copytree(corpus, folder)
    (folder / "train0.wav").write_bytes(b"no sound")
    words = ["data.skip_bad=true", "trainer.max_steps=1"]
    last = run(composed(folder, *words), tmp_path / "run")
    (told,) = [
        record.getMessage() for record in caplog.records if "left out" in record.getMessage()
    ]
    assert told.startswith("1 of 24 recordings are left out; the first: train0.wav")
    assert "train/loss" in last and "train/audio_per_second" in last
    recognizer = famx.load(tmp_path / "run")
    assert recognizer.transcribe(str(corpus / "test0.wav")) == recognizer.transcribe(
        [corpus / "test0.wav"]
    )
    with pytest.raises(UserError, match="is a folder"):
        recognizer.transcribe(corpus)
