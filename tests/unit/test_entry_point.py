"""The entry point `famx COMMAND` runs the same as `python -m famx.COMMAND`."""

import logging
import sys

import pytest

import famx
from famx import __main__ as entry_point
from famx.config.command import run_command
from famx.training import identity


@pytest.fixture
def call(monkeypatch, capsys):
    """Returns a function that calls `famx WORDS`: its status and its output."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["famx", *words])
        # a command is a module of its own each time it runs
        with pytest.raises(SystemExit) as exit_info:
            entry_point.run()
        return exit_info.value.code, *capsys.readouterr()

    return run


def test_help_has_a_line_for_each_command(call):
    status, out, _ = call("--help")
    assert status == 0
    for command in entry_point.COMMANDS:
        (line,) = [line for line in out.splitlines() if line.split()[:1] == [command]]
        assert len(line.split()) > 2
    assert call() == (0, out, "")


def test_a_command_leaves_the_logger_as_it_was(call):
    level = logging.getLogger("famx").level
    call("--version")
    assert logging.getLogger("famx").level == level


def test_code_of_a_training_is_without_the_commands():
    assert sorted(identity.COMMANDS) == sorted(["__main__", *entry_point.COMMANDS])


def test_version_is_that_of_famx(call, monkeypatch, capsys):
    assert call("--version") == (0, f"famx {famx.__version__}\n", "")
    monkeypatch.setattr(sys, "argv", ["train", "--version"])
    with pytest.raises(SystemExit):
        run_command(lambda: 1)
    assert capsys.readouterr().out == f"famx {famx.__version__}\n"


def test_misspelt_command_is_refused(call):
    status, out, err = call("trian")
    assert (status, out) == (2, "")
    assert "famx trian: no such command; did you mean train?" in err


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_command_gets_its_words_and_gives_its_status(call):
    status, out, err = call("parts", "norm")
    assert status == 0, err
    assert "rmsnorm" in out
    status, _, err = call("parts", "nrm")
    assert status == 2
    assert "did you mean norm?" in err
