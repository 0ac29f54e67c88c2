"""A sample of scripts/torture, whose long forms are run by hand."""

import importlib
import sys
from pathlib import Path

import pytest

SCRIPTS = str(Path(__file__).parents[2] / "scripts")


@pytest.mark.parametrize(
    ("name", "words"), [("checkpoints", ["60", "1"]), ("kills", ["12", "1"]), ("runs", ["3", "1"])]
)
def test_sample_of_damage_and_kills_is_withstood(name, words, monkeypatch):
    monkeypatch.setattr(sys, "path", [SCRIPTS, *sys.path])
    assert importlib.import_module(f"tortures.{name}").main(words) == 0
