"""Runs whose data moved or changed, and runs that are scored on other data."""

import json
import logging
import shutil

import pytest
import soundfile
from tones import TINY, write_tones

from famx.data._fingerprint import recordings_of
from famx.data._normalisers import normalise_basic, normaliser_version
from famx.experiment.run import run
from famx.training.run_dir import RunDir


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_tones(folder)
    return folder


@pytest.fixture
def trained(data, command):
    """A run of two steps in the folder `run`."""
    words = [*TINY, "data=manifest", f"data.root={data}", "hydra.run.dir=run"]
    result = command("train", *words, "trainer.max_steps=2")
    assert result.status == 0, result.err
    return result


def test_scores_on_other_data_are_in_other_files(trained, data, command, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(data, other)
    (data / "part.tsv").write_text("".join((data / "test.tsv").read_text().splitlines(True)[:2]))
    scores = (tmp_path / "run" / "scores.test.json").read_text()

    result = command("evaluate", "run", "data.test=part.tsv")
    assert result.status == 0, result.err
    [file] = (tmp_path / "run").glob("scores.test.manifest,test=part.tsv.json")
    assert json.loads(file.read_text())["utterances"] == 2
    # other folders have other files, and the name of a folder is none of a path
    shutil.rmtree(data)
    for name in (other, "other"):
        result = command("evaluate", "run", f"data.root={name}")
        assert result.status == 0, result.err
    assert len(list((tmp_path / "run").glob("scores.test.manifest,root=*.json"))) == 2
    assert (tmp_path / "run" / "scores.test.json").read_text() == scores
    assert "there is no manifest" in command("evaluate", "run").sentence


def test_data_that_moved_are_the_same_on_resume(trained, data, command, tmp_path):
    data.rename(tmp_path / "1.10")
    words = ["resume=run", "data.root=1.10", "trainer.max_steps=3"]
    result = command("train", *words)
    assert result.status == 0, result.err
    assert "has changed" not in result.err
    assert RunDir("run").load_config()["data"]["root"] == str(tmp_path / "1.10")
    assert "cannot change on resume" in command("train", "resume=run", "data.join=[1,2]").sentence


def test_data_that_changed_are_reported_on_resume(trained, data, caplog, tmp_path):
    caplog.set_level(logging.WARNING, "famx")
    lines = (data / "train.tsv").read_text().splitlines(keepends=True)
    (data / "train.tsv").write_text("".join([*lines[1:], lines[0]]))
    text = (data / "test.tsv").read_text().split("\t")
    text[1] = text[1][::-1] + "a"
    (data / "test.tsv").write_text("\t".join(text))
    config = RunDir(tmp_path / "run").load_config()
    config["trainer"]["max_steps"] = 3
    run(config, tmp_path / "run", resume=True)
    assert "has changed since" in caplog.text
    assert "used as it is now: test (texts), train (order)" in caplog.text


def test_folder_of_noise_is_part_of_the_run(data, command, tmp_path):
    # a folder whose name Hydra would read as a number
    (tmp_path / "1.10").mkdir()
    shutil.copyfile(data / "test0.wav", tmp_path / "1.10" / "noise.wav")
    words = [*TINY, "data=manifest", f"data.root={data}", "hydra.run.dir=run"]
    result = command("train", *words, "trainer.max_steps=1", "loader.noise=1.10")
    assert result.status == 0, result.err
    config = RunDir("run").load_config()
    assert config["loader"]["noise"] == str(tmp_path / "1.10")
    saved = json.loads((tmp_path / "run" / "data.json").read_text())["train"]["noise"]
    # it may move, and is reported where it changes
    (tmp_path / "1.10").rename(tmp_path / "moved")
    assert "does not exist" in command("train", "resume=run", "trainer.max_steps=2").sentence
    result = command("train", "resume=run", "loader.noise=moved", "trainer.max_steps=2")
    assert result.status == 0, result.err
    assert "has changed" not in result.err
    shutil.copyfile(data / "test1.wav", tmp_path / "moved" / "noise.wav")
    result = command("train", "resume=run", "trainer.max_steps=3")
    assert "used as it is now: train (noise)" in result.err
    assert json.loads((tmp_path / "run" / "data.json").read_text())["train"]["noise"] != saved


def test_noise_without_recordings_to_change_is_refused(data, command):
    words = ["task=lm", "data=text", "data.path=text.txt", f"loader.noise={data}"]
    sentence = command("train", *words, "trainer.max_steps=1").sentence
    assert "loader.noise changes recordings, and data=text has none" in sentence


def test_summary_names_all_splits_and_the_rule_of_the_texts(trained, tmp_path):
    for words in ("train", "dev", "test", "6 examples", "basic: lower case, without punctuation"):
        assert words in trained.out
    scores = json.loads((tmp_path / "run" / "scores.test.json").read_text())
    assert scores["normaliser"] == "basic"


def test_recordings_in_both_train_and_test_are_reported(data, command):
    shutil.copyfile(data / "train3.wav", data / "test2.wav")
    words = [*TINY, "data=manifest", f"data.root={data}", "hydra.run.dir=run"]
    result = command("train", *words, "trainer.max_steps=1")
    assert result.status == 0, result.err
    [line] = [line for line in result.err.split("\n") if "recordings of test are in train" in line]
    assert ".wav" in line


def test_recordings_of_the_training_are_reported_when_a_run_is_scored(
    trained, data, command, tmp_path
):
    def warnings(*words):
        finished = command("evaluate", "run", *words)
        assert finished.status == 0, finished.err
        return finished.err

    # short random texts may occur in two splits
    for file in data.glob("test*.wav"):
        samples, rate = soundfile.read(file)
        soundfile.write(file, samples[:-1], rate)
    assert "in the training of run" not in warnings()
    message = "24 of the 24 recordings of test are in the training of run; the first: "
    assert message in warnings("data.test=train.tsv")
    assert "in the training" not in warnings("--split", "train")
    # a copy in another folder, of a run whose own recordings are gone
    other = shutil.copytree(data, tmp_path / "other")
    (other / "test9.wav").write_bytes((data / "train9.wav").read_bytes())
    (other / "test.tsv").write_text("test0.wav\tab\ntest9.wav\tab\n")
    for _ in range(2):
        err = warnings(f"data.root={other}")
        assert "1 of the 2 recordings of test are in the training of run; the first: " in err
        assert f"test9.wav, which is {data / 'train'}" in err
        shutil.rmtree(data, ignore_errors=True)


def test_recordings_of_a_resumed_training_are_those_of_all_its_data(trained, data, tmp_path):
    (data / "train.tsv").write_text("".join((data / "train.tsv").read_text().splitlines(True)[:9]))
    config = RunDir(tmp_path / "run").load_config()
    config["trainer"]["max_steps"] = 3
    run(config, tmp_path / "run", resume=True)
    recordings = json.loads((tmp_path / "run" / "recordings.json").read_text())
    # equal recordings count once
    assert set(recordings) == set(recordings_of(map(str, data.glob("train*.wav"))))


@pytest.mark.parametrize("name", ["data.json", "recordings.json", "identity.json"])
@pytest.mark.parametrize("content", [None, "", "{}", "[1]", 9999 * "[", "\udcff"])
def test_damaged_record_of_the_data_is_reported(name, content, trained, caplog, tmp_path):
    run_dir = RunDir(tmp_path / "run")
    assert run_dir.read_record(tmp_path / "run" / name)
    assert not caplog.records
    (tmp_path / "run" / name).unlink()
    if content is not None:
        (tmp_path / "run" / name).write_text(content, errors="surrogateescape")
    assert run_dir.read_record(tmp_path / "run" / name) == {}
    [record] = caplog.records
    assert name in record.getMessage()


def test_characters_that_only_test_has_are_scored_as_errors(data, command, tmp_path):
    lines = [f"test{index}.wav\t\u0416 \u0416" for index in range(3)]
    (data / "test.tsv").write_text("\n".join(lines), encoding="utf-8")
    words = [*TINY, "data=manifest", f"data.root={data}", "hydra.run.dir=run"]
    result = command("train", *words, "trainer.max_steps=1")
    assert result.status == 0, result.err
    assert "3 of 3 texts of test have characters that no training text has" in result.err
    scores = json.loads((tmp_path / "run" / "scores.test.json").read_text())
    assert scores["wer"]["rate"] >= 1
    assert scores["wer"]["units"] == 6
    assert scores["loss"] >= 0


@pytest.mark.parametrize(
    "content",
    ["seed: " + 5000 * "9", 3000 * "{", "[" * 3000, "famx_parts: [a, b]"],
    ids=["integer", "braces", "brackets", "words"],
)
def test_damaged_config_of_a_run_is_refused_in_one_sentence(content, trained, command, tmp_path):
    file = tmp_path / "run" / "config.yaml"
    text = file.read_text()
    # the option replaces the one of the same name
    key = content.partition(":")[0]
    lines = [line for line in text.split("\n") if not line.startswith(f"{key}:")]
    file.write_text("\n".join([content, *lines]))
    for name in ("evaluate", "transcribe"):
        words = ["run", "a.wav"] if name == "transcribe" else ["run"]
        assert command(name, *words).status == 2


@pytest.mark.parametrize("value", [5000 * "9", 3000 * "{", "[" * 3000])
def test_value_that_cannot_be_read_is_refused_in_one_sentence(value, command):
    result = command("train", "data=manifest", f"trainer.max_steps={value}")
    assert result.status == 2
    assert "cannot be read" in result.sentence


@pytest.mark.parametrize("task", ["ctc", "seq2seq"])
def test_hypotheses_are_compared_under_the_normaliser_of_the_references(
    task, data, command, tmp_path
):
    for manifest in data.glob("*.tsv"):
        paths_and_texts = [line.split("\t") for line in manifest.read_text().splitlines()]
        lines = [f"{path}\t{text.upper()}" for path, text, *_ in paths_and_texts]
        # of the first reference of test, nothing is left
        if manifest.stem == "test":
            lines[0] = f"{paths_and_texts[0][0]}\t..."
        manifest.write_text("\n".join(lines))
    words = [*TINY, f"task={task}", "data=manifest", f"data.root={data}", "hydra.run.dir=run"]
    words += ["data.normaliser=none", "task.vocab_size=0", "trainer.max_steps=2"]
    finished = command("train", *words)
    assert finished.status == 0, finished.err
    finished = command("evaluate", "run", "data.normaliser=basic")
    assert finished.status == 0, finished.err

    def rows(file):
        return [line.split("\t") for line in file.read_text().splitlines()[1:]]

    written = rows(tmp_path / "run" / "hypotheses.test.tsv")
    [file] = (tmp_path / "run").glob("hypotheses.test.*basic*.tsv")
    normalised = rows(file)
    empty = [row[0] for row in normalised if not row[1]]
    assert empty == [row[0] for row in written if row[1] == "..."] == ["test0.wav"]
    for (_, _, hypothesis), (_, _, other) in zip(written, normalised, strict=True):
        assert other == normalise_basic(hypothesis)
    assert any(hypothesis.isupper() for _, _, hypothesis in written)
    [file] = (tmp_path / "run").glob("scores.test.*basic*.json")
    scores = json.loads(file.read_text())
    assert scores["normaliser"] == "basic"
    assert "normaliser_version" not in scores
    assert scores["wer"]["units"] == sum(len(row[1].split()) for row in normalised)


def test_scores_under_the_rules_of_a_package_name_its_version(trained, command, tmp_path):
    finished = command("evaluate", "run", "data.normaliser=english")
    assert finished.status == 0, finished.err
    [file] = (tmp_path / "run").glob("scores.test.*english*.json")
    scores = json.loads(file.read_text())
    assert scores["normaliser"] == "english"
    assert scores["normaliser_version"] == normaliser_version("english")
