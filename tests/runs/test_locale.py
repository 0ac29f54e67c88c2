"""Commands in a locale that is not UTF-8, and names with the marks of rich's markup."""

import os
import pwd
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tones import TINY, write_tones

import famx
from famx.training.run_dir import RunDir

SOURCE = Path(famx.__file__).parent


def test_every_console_prints_texts_of_the_user_without_markup():
    calls = []
    for file in SOURCE.rglob("*.py"):
        calls += re.findall(r"(?<!\w)(?:Console|TextColumn)\(.+\)", file.read_text("utf-8"))
    # the width of a terminal needs no markup
    assert calls
    for call in calls:
        assert "markup=False" in call, call


def test_name_of_a_run_is_printed_with_its_brackets(corpus, command, tmp_path):
    run = command("train", *TINY, f"data.root={corpus}", "data=manifest", "hydra.run.dir=a[v1]")
    assert run.status == 0
    assert f"run: {tmp_path / 'a[v1]'}\n" in run.out
    assert "scores.test.json in a[v1]" in command("evaluate", "a[v1]").out


@pytest.mark.parametrize("folder", ["1.10", "2024_01_15", "true", "a b [1]", "it's", "x,y"])
def test_folder_of_any_name_is_read_and_trained_in(folder, tmp_path, command):
    (tmp_path / folder).mkdir()
    write_tones(tmp_path / folder)
    words = [*TINY, "data=manifest", "trainer.max_steps=1", f"data.root={folder}"]
    run = command("train", *words, f"hydra.run.dir=run {folder}")
    assert run.status == 0, run.err
    config = yaml.safe_load((tmp_path / f"run {folder}" / "config.yaml").read_text("utf-8"))
    assert config["data"]["root"] == str(tmp_path / folder)


def test_run_whose_name_is_a_number_is_continued_and_transferred(corpus, tmp_path, command):
    words = [*TINY, "data=manifest", f"data.root={corpus}", "trainer.max_steps=1"]
    assert command("train", *words, "hydra.run.dir=20240101").status == 0
    assert command("train", *words, "init_from=20240101", "hydra.run.dir=run").status == 0
    assert RunDir("run").load_config()["init_from"] == str(tmp_path / "20240101")
    assert command("train", "resume=20240101", "trainer.max_steps=2").status == 0


def test_user_without_a_name_and_a_home_trains_and_evaluates(corpus, command, monkeypatch):
    def find_nobody(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "USER", "LOGNAME", "FAMX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", find_nobody)
    words = [*TINY, "data=manifest", f"data.root={corpus}", "trainer.max_steps=1"]
    finished = command("train", *words, "hydra.run.dir=run")
    assert finished.status == 0, finished.err
    assert command("evaluate", "run").status == 0
    # ~ has no meaning here
    finished = command("train", *words, "data.root=~/corpus", "hydra.run.dir=other")
    assert finished.status == 2
    assert "~/corpus" in finished.sentence


def test_sweep_reads_paths_as_they_are_typed(tmp_path, command):
    for folder in ("1.10", "1.20"):
        (tmp_path / folder).mkdir()
        write_tones(tmp_path / folder)
    words = [*TINY, "data=manifest", "trainer.max_steps=1", "data.root=1.10,1.20"]
    assert command("train", "-m", *words, "hydra.sweep.dir=2024_01").status == 0
    names = {path.parent.name for path in (tmp_path / "2024_01").glob("*/config.yaml")}
    assert names == {"data.root=1.10", "data.root=1.20"}


@pytest.mark.slow
def test_sweep_reads_a_fixed_path_with_letters_of_any_alphabet(tmp_path, command):
    folder = tmp_path / "jürgen ß 語"
    folder.mkdir()
    write_tones(folder)
    words = [*TINY, "data=manifest", "trainer.max_steps=1", f"data.root={folder}", "seed=0,1"]
    finished = command("train", "-m", *words, "hydra.sweep.dir=sweep")
    assert finished.status == 0, finished.err
    for seed in (0, 1):
        config = RunDir(tmp_path / "sweep" / f"seed={seed}").load_config()
        assert config["data"]["root"] == str(folder)


@pytest.mark.slow
def test_locale_without_utf8_trains_and_evaluates(tmp_path):
    root = tmp_path / "d\u00e9j\u00e0 [v1]"
    root.mkdir()
    write_tones(root)
    for manifest in root.glob("*.tsv"):
        text = manifest.read_text("utf-8").replace("a", "\u00e4").replace("w\u00e4v", "wav")
        manifest.write_text(text, "utf-8")
    for file in root.rglob("*.wav"):
        file.rename(file.with_name(file.name.replace("a", "\u00e4").replace("w\u00e4v", "wav")))
    settings = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    environment = os.environ | settings | {"PYTHONIOENCODING": "ascii"}

    def command(name, *words):
        return subprocess.run(
            [sys.executable, "-m", f"famx.{name}", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    words = [*TINY, "data=manifest", f"data.root={root}", "hydra.run.dir=run"]
    trained = command("train", *words, "trainer.max_steps=2")
    assert trained.returncode == 0, trained.stderr
    assert command("evaluate", "run").returncode == 0
    assert "\u00e4" in (tmp_path / "run" / "hypotheses.test.tsv").read_text("utf-8")
    refused = command("train", *words[:-1], "hydra.run.dir=\u00e4")
    assert refused.returncode == 2
    assert "is not UTF-8 in this locale: set LC_ALL=C.UTF-8" in refused.stderr
