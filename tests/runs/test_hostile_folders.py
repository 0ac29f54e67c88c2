"""Folders of strangers' runs: links, pipes and texts in them reach nothing outside."""

import logging
import os
import shutil
import signal

import pytest

from famx import files
from famx.notation import UserError

TEXT = (
    *("task=lm", "data=text", "data.path=text.txt", "trainer.max_steps=1", "trainer.device=cpu"),
    *("model.d_model=16", "model.n_heads=2", "model.n_layers=1", "trainer.log_every=1"),
)
# a test that waits for ever is interrupted; the limit of a refusal is that of `command`
MAX_SECONDS = 200
# files that famx appends to or reads, and temporary files, which it renames
FILES = (
    *("famx.log", "metrics.jsonl", "groups.tsv", "config.yaml", "tokenizer.json", ".lock"),
    *("spectrum.parquet", "scores.test.json", "spectrum.tmp", ".groups.tsv.tmp"),
    *(".config.yaml.tmp", ".metrics.jsonl.tmp", ".scores.test.json.tmp", "events.out.tfevents.1"),
    *("checkpoints", "checkpoints/step-1", "checkpoints/step-1/state.json"),
    *("checkpoints/step-1/model.safetensors", "checkpoints/.step-2.tmp", "checkpoints/step-0"),
)


@pytest.fixture
def run_folder(command, tmp_path):
    """Returns the folder of a run, and ends a test that waits for a pipe."""
    finished = command("train", *TEXT, "hydra.run.dir=run")
    assert finished.status == 0, finished.err
    # reading a pipe would never end
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield tmp_path / "run"
    signal.alarm(0)


def plant(path, target, kind):
    """Replaces a file or folder of a run by a link to a copy of it, or by a pipe."""
    if path.is_dir():
        shutil.copytree(path, target)
        shutil.rmtree(path)
    else:
        target.write_bytes(path.read_bytes() if path.exists() else b"precious")
        path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "hard link":
        os.link(target, path)
    else:
        path.symlink_to(target)


def contents(path):
    if path.is_dir():
        return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_link_or_pipe_in_a_folder_is_refused_by_every_command(kind, command, run_folder, tmp_path):
    for i, name in enumerate(FILES):
        folder = tmp_path / f"run{i}"
        shutil.copytree(run_folder, folder)
        target = tmp_path / f"target{i}"
        plant(folder / name, target, kind)
        before = contents(target)
        commands = [
            ("train", f"resume={folder}", "trainer.max_steps=2"),
            ("evaluate", folder),
            ("train", *TEXT, f"init_from={folder}"),
            ("compare", folder),
            ("spectra", folder),
        ]
        # all commands for the first file, two of them for each of the others
        for words in commands if i == 0 else commands[:2]:
            signal.alarm(MAX_SECONDS)
            finished = command(*words)
            assert finished.status == 2, (name, words)
            assert name in finished.sentence
        assert contents(target) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["famx.log", "metrics.jsonl", ".lock", ".config.yaml.tmp"])
def test_new_run_follows_no_link_in_an_existing_folder(name, command, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run" / name).symlink_to(tmp_path / "precious")
    finished = command("train", *TEXT, "hydra.run.dir=run")
    assert finished.status == 2
    assert f"{name} is a link" in finished.sentence
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.slow
def test_new_run_and_resumed_run_write_into_no_file_that_has_another_name(
    command, run_folder, tmp_path
):
    (tmp_path / "new").mkdir()
    for folder, name in ((run_folder, "famx.log"), (tmp_path / "new", ".lock")):
        plant(folder / name, tmp_path / "target", "hard link")
    before = contents(tmp_path / "target")
    for word in (f"resume={run_folder}", f"hydra.run.dir={tmp_path / 'new'}"):
        words = TEXT if word.startswith("hydra") else ["trainer.max_steps=2"]
        finished = command("train", *words, word)
        assert finished.status == 2
        assert "is a hard link" in finished.sentence
    assert contents(tmp_path / "target") == before


def test_file_is_opened_without_links_and_pipes(tmp_path):
    (tmp_path / "file").write_text("a")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "file", "a", opener=files.open_regular) as stream:
        stream.write("b")
    assert (tmp_path / "file").read_text() == "ab"
    for name in ("link", "pipe"):
        with pytest.raises(UserError, match=f"{name} is not a regular file"):
            os.close(files.open_regular(str(tmp_path / name), os.O_WRONLY))


def test_atomic_write_does_not_follow_a_link_in_the_place_of_its_temporary_file(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".file.tmp").symlink_to(tmp_path / "precious")
    files.write_atomic(tmp_path / "file", "text")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "file").read_text() == "text"


def test_message_in_a_log_is_one_line_without_control_characters():
    formatter = files.PrintableFormatter("%(message)s")
    record = logging.makeLogRecord({"msg": "left out: %s", "args": ("a\x1b[2J\nb\u202e é",)})
    assert formatter.format(record) == "left out: a\\x1b[2J\\nb\\u202e é"
