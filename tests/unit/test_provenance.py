"""The commit of famx is that of its own repository, and says whether files have changed."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from famx.training import provenance
from famx.training.provenance import provenance as facts_of


def git(folder: Path, *words: str) -> str:
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    command = ["git", "-C", str(folder), *author, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def module(tmp_path, monkeypatch) -> Path:
    """Lets the module lie in another folder."""
    file = tmp_path / "famx" / "training" / "provenance.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    monkeypatch.setattr(provenance, "__file__", str(file))
    return file


def test_commit_and_changes_are_those_of_the_repository(module, tmp_path):
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    git(tmp_path, "tag", "-a", "v1", "-m", "a tag")
    facts = facts_of(torch.device("cpu"), processes=2)
    assert facts["commit"] == git(tmp_path, "rev-parse", "HEAD")
    assert facts["has_changes"] is False
    assert facts["processes"] == 2
    module.write_text("1")
    facts = facts_of(torch.device("cpu"), processes=1)
    assert facts["commit"] == git(tmp_path, "rev-parse", "HEAD")
    assert facts["has_changes"] is True


def test_without_a_repository_there_is_no_commit(module, tmp_path):
    facts = facts_of(torch.device("cpu"), processes=1)
    assert facts["commit"] is None
    assert facts["has_changes"] is None
    # a repository without commits
    git(tmp_path, "init")
    assert facts_of(torch.device("cpu"), processes=1)["commit"] is None


def test_run_of_a_sweep_names_the_command_of_the_sweep(monkeypatch):
    monkeypatch.setattr(provenance, "parent_process", lambda: "the sweep")
    monkeypatch.setattr("sys.argv", ["famx/train.py", "-m", "seed=0,1"])
    monkeypatch.setattr("sys.orig_argv", ["python", "-c", "from multiprocessing.forkserver ..."])
    facts = facts_of(torch.device("cpu"), 1)
    assert facts["command"] == f"{sys.executable} famx/train.py -m seed=0,1"
