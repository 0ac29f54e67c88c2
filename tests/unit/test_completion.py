"""The scripts of `famx completion`, run by the shells that are installed."""

import re
import shutil
import subprocess
import sys

import pytest

from famx.__main__ import COMMANDS
from famx.completion import SCRIPTS, main, script, words_of

# what bash calls when TAB is pressed, with the words that it has split at spaces and at =
BASH = r"""
source "$1"; shift
COMP_WORDBREAKS=$' \t\n"\'><=;|&(:'
COMP_LINE="$1"; COMP_POINT=${#1}; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_famx
printf '%s\n' "${COMPREPLY[@]}"
"""
LINES = [
    ("famx trai", {"train"}),
    ("famx train optim=fam_a", {"optim=fam_adamw"}),
    ("famx train trainer.max_s", {"trainer.max_steps="}),
    ("famx train trainer.device=c", {"trainer.device=cpu", "trainer.device=cuda"}),
    ("famx train trainer.compile=t", {"trainer.compile=true"}),
    ("famx train optim=adamw experiment=shak", {"experiment=shakespeare"}),
    ("famx train param_groups.embedding.d", {"param_groups.embedding.decay_scale="}),
    ("famx train --dr", {"--dry"}),
    ("famx evaluate decode.be", {"decode.beam="}),
    ("famx evaluate optim.l", set()),
    ("famx parts atten", {"attention"}),
    ("famx completion zs", {"zsh"}),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scripts")
    for shell in SCRIPTS:
        (folder / shell).write_text(script(shell))
    return folder


def run(*command, **options):
    finished = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert finished.returncode == 0 and not finished.stderr, finished.stderr
    return finished.stdout


@pytest.mark.parametrize(("line", "expected"), LINES)
def test_bash_completes_commands_settings_and_values(line, expected, files):
    if not shutil.which("bash"):
        pytest.skip("no bash")
    words = re.findall(r"=|[^\s=]+", line)
    out = run("bash", "--norc", "-c", BASH, "bash", str(files / "bash"), line, *words)
    # without what is before =, which is in the line already
    prefix = line.split()[-1].rpartition("=")
    completed = {"".join(prefix[:2]) + word for word in out.split()}
    assert completed == expected


@pytest.mark.parametrize(("line", "expected"), LINES)
def test_fish_completes_commands_settings_and_values(line, expected, files, tmp_path):
    if not shutil.which("fish"):
        pytest.skip("no fish")
    # in a folder without files, which it offers too
    commands = f"source {files / 'fish'}; complete -C '{line}'"
    completed = set(run("fish", "--no-config", "-c", commands, cwd=tmp_path).split())
    assert completed == expected


@pytest.mark.parametrize("shell", SCRIPTS)
def test_scripts_are_valid(shell, files):
    if not shutil.which(shell):
        pytest.skip(f"no {shell}")
    assert run(shell, "-n", str(files / shell)) == ""


def test_every_command_has_its_options():
    for command in COMMANDS:
        keys, values = words_of(command)
        assert "--help" in keys
        assert len(set(keys)) == len(keys) and len(set(values)) == len(values)
    assert {"--split", "--help"} <= set(words_of("evaluate")[0])


def test_command_prints_the_script(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["completion", "bash"])
    assert main() == 0
    assert capsys.readouterr().out == script("bash")
