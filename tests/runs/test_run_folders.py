"""Folders of runs and recordings that are damaged, in use, of another model, or refused."""

import itertools
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from tones import recording_of, reported_values, stopped_at, tones_config

import famx
from famx.config.words import _folder_name
from famx.experiment.build import build_experiment
from famx.experiment.run import run
from famx.inference import Recognizer
from famx.notation import UserError
from famx.training import checkpoint
from famx.training.reservation import remove_reserved, reserve_folder
from famx.training.run_dir import RunDir

# folders of runs


def test_folder_is_locked_while_a_run_trains_in_it(tmp_path):
    run_dir = RunDir(tmp_path / "run")
    with run_dir.lock(resume=False):
        for resume in (False, True):
            with pytest.raises(UserError, match="is in use"), run_dir.lock(resume):
                pass
    with run_dir.lock(resume=True):
        pass
    # a folder that is not new is refused unless the run resumes
    with pytest.raises(UserError, match="it has saved no checkpoint"), run_dir.lock(resume=False):
        pass
    (run_dir.checkpoints / "step-1").mkdir()
    with pytest.raises(UserError, match="continue it with resume="), run_dir.lock(resume=False):
        pass


def test_runs_of_the_same_second_have_separate_folders(tmp_path):
    path = str(tmp_path / "outputs" / "now_name")
    folders = [reserve_folder(path) for _ in range(3)]
    assert folders == [path, f"{path}_2", f"{path}_3"]
    # a reserved folder can be used for a run, and is removed if the run is refused
    with RunDir(folders[0]).lock(resume=False):
        pass
    remove_reserved(Path(folders[1]))
    remove_reserved(Path(folders[0]))
    assert sorted(folder.name for folder in Path(path).parent.iterdir()) == [
        "now_name",
        "now_name_3",
    ]


def test_folders_of_a_sweep_over_long_values_have_short_names_that_differ():
    layers = [{"attention": "multihead"}] * 99
    names = {_folder_name(value, 200) for value in (layers, [*layers, {}], "short/er")}
    assert len(names) == 3
    assert all(len(name.encode()) <= 200 for name in names)
    assert "short_er" in names


def test_checkpoint_of_another_model_is_refused(corpus, tmp_path):
    run(tones_config(corpus, "trainer.max_steps=1"), tmp_path / "run")
    config = tones_config(corpus, f"init_from={tmp_path / 'run'}", "model.d_model=32")
    with pytest.raises(UserError, match="is a checkpoint of another model"):
        run(config, tmp_path / "wider")


def test_run_resumes_without_its_init_from_and_with_damaged_logs(corpus, tmp_path, caplog):
    folder = tmp_path / "run"
    run(tones_config(corpus), tmp_path / "source")
    words = ["trainer.max_steps=4", "trainer.log_every=1", "probe=light"]
    run(tones_config(corpus, *words, f"init_from={tmp_path / 'source'}"), folder)
    shutil.rmtree(tmp_path / "source")
    (folder / "spectrum.parquet").write_text("junk")
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write("3\n")

    # a longer training, stopped once; scores of the shorter one are removed
    config = yaml.safe_load((folder / "config.yaml").read_text())
    longer = config | {"trainer": config["trainer"] | {"max_steps": 6}}
    assert (folder / "scores.test.json").exists()
    with stopped_at(5, signal.SIGTERM):
        run(longer, folder, resume=True)
    assert not list(folder.glob("*.test.*"))
    run(longer, folder, resume=True)
    assert (folder / "scores.test.json").exists()
    assert list(reported_values(folder, "train/loss")) == [1, 2, 3, 4, 5, 6]
    assert any("spectrum.parquet is damaged" in record.getMessage() for record in caplog.records)

    shorter = config | {"trainer": config["trainer"] | {"max_steps": 5}}
    with pytest.raises(UserError, match=r"max_steps=5 is less than the 6 steps"):
        run(shorter, folder, resume=True)


def test_scores_of_another_checkpoint_are_in_another_file(corpus, tmp_path):
    run(tones_config(corpus), tmp_path / "run")
    best_scores = (tmp_path / "run" / "scores.test.json").read_text()
    Recognizer(tmp_path / "run", "last").evaluate("test")
    assert (tmp_path / "run" / "scores.test.json").read_text() == best_scores
    assert (tmp_path / "run" / "scores.test.last.json").exists()


# recordings


@pytest.fixture
def corpus_copy(corpus, tmp_path):
    """Returns the folder of a corpus that a test may change."""
    return shutil.copytree(corpus, tmp_path / "copy")


def test_every_split_is_read_before_the_first_step(corpus, tmp_path):
    with pytest.raises(UserError, match=r"there is no manifest .*nothing\.tsv"):
        run(tones_config(corpus, "data.test=nothing.tsv"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_text_too_long_for_its_frames_is_refused_in_every_split(corpus_copy, tmp_path):
    with (corpus_copy / "dev.tsv").open("a") as stream:
        stream.write("dev0.wav\t" + 99 * "ab" + "\n")
    with pytest.raises(UserError, match="more than CTC can emit"):
        run(tones_config(corpus_copy), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_first_recording_may_be_one_that_fails_only_in_decoding(corpus, corpus_copy, tmp_path):
    for name in ("train0.wav", "test0.wav"):
        samples, rate = soundfile.read(corpus_copy / name)
        samples[9] = np.nan
        soundfile.write(corpus_copy / name, samples, rate, subtype="FLOAT")
    latest = run(tones_config(corpus_copy, "data.skip_bad=true"), tmp_path / "skipping")
    assert "test/wer" in latest
    # without skip_bad, a bad recording of test ends the run after its training
    shutil.copy(corpus / "train0.wav", corpus_copy)
    message = r"test0\.wav holds samples that are not finite; the run is trained and saved"
    with pytest.raises(UserError, match=message):
        run(tones_config(corpus_copy), tmp_path / "run")
    assert checkpoint.load(tmp_path / "run" / "checkpoints")["step"] == 7


def test_omitted_recordings_are_reported_once(corpus, corpus_copy, tmp_path, caplog):
    (corpus_copy / "train0.wav").write_bytes(b"no sound")
    words = ["data.skip_bad=true", "trainer.max_steps=1"]
    latest = run(tones_config(corpus_copy, *words), tmp_path / "run")
    messages = [record.getMessage() for record in caplog.records]
    (message,) = [message for message in messages if "left out" in message]
    assert message.startswith("1 of 24 recordings are left out; the first: train0.wav")
    assert "train/loss" in latest
    assert "train/audio_per_second" in latest


def test_recordings_of_any_length_rate_and_channels_are_transcribed(corpus, tmp_path):
    run(tones_config(corpus), tmp_path / "run")
    recognizer = famx.load(tmp_path / "run")
    long = np.tile(recording_of("abc"), 60)
    soundfile.write(tmp_path / "long.flac", np.stack([long, long], 1), 16_000)
    soundfile.write(tmp_path / "short.wav", np.zeros(1, "float32"), 44_100)
    texts = recognizer.transcribe([tmp_path / "long.flac", tmp_path / "short.wav"])
    assert [type(text) for text in texts] == [str, str]
    # one path is a list of one
    file = corpus / "test0.wav"
    assert recognizer.transcribe(str(file)) == recognizer.transcribe([file])
    with pytest.raises(UserError, match=r"nothing\.wav"):
        recognizer.transcribe([tmp_path / "nothing.wav"])
    with pytest.raises(UserError, match="is a folder"):
        recognizer.transcribe(corpus)


def test_speeds_leave_enough_frames_for_ctc(corpus_copy, caplog):
    # 25 frames of 40 ms for 24 letters; 1.1 times as fast, they are 23
    soundfile.write(corpus_copy / "dense.wav", recording_of("abca"), 16_000)
    (corpus_copy / "train.tsv").write_text(f"dense.wav\t{'ab' * 12}\tx\n")
    config = tones_config(corpus_copy, "task=ctc", "decode=ctc_greedy")
    experiment = build_experiment(config, torch.device("cpu"))
    batches = experiment.loader("train").train_batches()
    speeds = set()
    for _, _, batch in itertools.islice(batches, 30):
        [n_frames] = experiment.model.frontend.n_frames(batch.lengths).tolist()
        assert experiment.task.reject(n_frames, batch.texts[0]) is None
        speeds.add(n_frames)
    assert len(speeds) > 1
    assert "1 of 1 recordings are too short for their texts at some of loader.speed" in caplog.text


def test_bad_files_do_not_end_transcribe(corpus, command, tmp_path):
    run(tones_config(corpus), tmp_path / "run")
    (tmp_path / "noise.wav").write_bytes(b"no audio")
    good = corpus / "test0.wav"
    finished = command("transcribe", tmp_path / "run", tmp_path / "noise.wav", good, "no.wav")
    assert finished.status == 2
    assert finished.out.startswith(f"{good}\t")
    sentences = finished.err.splitlines()
    assert "noise.wav cannot be decoded" in sentences[0]
    assert sentences[1] == "famx: no.wav does not exist"
    assert sentences[2].startswith("famx: 2 of 3 files are left out: ")
    # one bad file is one sentence
    finished = command("transcribe", tmp_path / "run", "no.wav")
    assert (finished.status, finished.err) == (2, "famx: no.wav does not exist\n")


def test_silent_file_has_an_empty_text_and_a_warning(corpus, command, tmp_path):
    run(tones_config(corpus), tmp_path / "run")
    soundfile.write(tmp_path / "silent.wav", np.full(16_000, 0.25), 16_000)
    good = corpus / "test0.wav"
    finished = command("transcribe", tmp_path / "run", tmp_path / "silent.wav", good)
    assert finished.status == 0
    assert finished.out.startswith(f"{tmp_path / 'silent.wav'}\t\n{good}\t")
    assert "silent.wav is silent, so its text is empty" in finished.err


def test_evaluation_and_transcription_agree_at_any_level(corpus_copy, tmp_path):
    run(tones_config(corpus_copy), tmp_path / "run")
    expected = famx.load(tmp_path / "run").evaluate("test").hypotheses
    signals = {}
    for file in sorted(corpus_copy.glob("test*.wav")):
        signals[file.name] = soundfile.read(file, dtype="float32")[0]
    for factor, offset in ((32_768.0, 0.0), (1 / 32_768, 0.0), (0.3, 0.3)):
        for name, samples in signals.items():
            changed = samples * factor + offset
            soundfile.write(corpus_copy / name, changed, 16_000, subtype="FLOAT")
        recognizer = famx.load(tmp_path / "run")
        evaluation = recognizer.evaluate("test")
        assert evaluation.hypotheses == expected
        for name, hypothesis in zip(evaluation.ids, evaluation.hypotheses, strict=True):
            assert recognizer.transcribe([corpus_copy / name]) == [hypothesis]
