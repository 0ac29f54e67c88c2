"""Code that the README shows, run as a reader would run it."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from famx.contracts import applicable
from famx.registry import PARTS, load_file

README = (Path(__file__).parents[2] / "README.md").read_text()


def execute(command):
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def example():
    """Returns the block of the README, a Python file that begins with its docstring."""
    (block,) = re.findall(r"```python\n(\"\"\".*?)```", README, re.DOTALL)
    return block


@pytest.fixture
def file(example, tmp_path):
    """Writes the example to the file that the README names."""
    path = tmp_path / "sharp.py"
    path.write_text(example)
    return path


def test_example_of_a_block_has_16_lines(example):
    assert len(example.strip().splitlines()) == 16


@pytest.mark.slow
def test_example_of_a_block_trains_and_is_required_to_evaluate_its_run(file, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be " * 99)
    words = ["task=lm", "data=text", f"data.path={text}", "trainer.max_steps=2"]
    words += ["attention=sharp", "attention.sharpness=5", f"famx_parts=[{file}]"]
    words += ["model.d_model=16", "model.n_layers=1", f"hydra.run.dir={tmp_path}/run"]
    trained = execute([sys.executable, "-m", "famx.train", *words])
    assert trained.returncode == 0, trained.stderr

    # the command that training prints names the file, without which the run cannot be evaluated
    evaluate = [sys.executable, "-m", "famx.evaluate", f"{tmp_path}/run"]
    refused = execute(evaluate)
    assert refused.returncode == 2
    assert "famx_parts=[sharp.py]" in refused.stderr
    (printed,) = [line for line in trained.stdout.splitlines() if "famx.evaluate" in line]
    assert shlex.split(printed)[3:] == [f"{tmp_path}/run", f"famx_parts=[{file}]"]
    evaluated = execute([*evaluate, f"famx_parts=[{file}]"])
    assert evaluated.returncode == 0, evaluated.stderr


@pytest.mark.slow
def test_example_of_a_block_satisfies_every_contract(file, monkeypatch):
    monkeypatch.setitem(PARTS, "attention", dict(PARTS["attention"]))
    load_file(file)
    part = PARTS["attention"]["sharp"]
    for contract in applicable("attention", part).values():
        contract(part)
