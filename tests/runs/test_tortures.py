"""A sample of scripts/torture, whose long forms are run by hand."""

import subprocess
import sys
from pathlib import Path

import pytest

TORTURE = Path(__file__).parents[2] / "scripts" / "torture"


@pytest.mark.parametrize(
    ("name", "words"), [("checkpoints", ["60", "1"]), ("kills", ["12", "1"]), ("runs", ["3", "1"])]
)
def test_sample_of_damage_and_kills_is_withstood(name, words):
    # in a process without the type checks of the tests, which draw random numbers
    command = [sys.executable, str(TORTURE), name, *words]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stdout + finished.stderr
