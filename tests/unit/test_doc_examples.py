"""Examples of the documentation run as a reader would run them."""

import re
from pathlib import Path

import pytest

from famx.monitoring.spectrum_log import read_decisions

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("page", "marker", "file"),
    [
        ("seed.md", "# FAMScheduler", "fam_debug.parquet"),
        ("tensorboard.md", "with OptimizerRecord", "fam.parquet"),
    ],
)
def test_example_writes_the_record_of_fam(page, marker, file, tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    (example,) = [block for block in blocks if marker in block]
    monkeypatch.chdir(tmp_path)
    exec(compile(example, page, "exec"), {})
    decisions = read_decisions(tmp_path / file)
    assert len({decision.step for decision in decisions}) > 1
    assert any(decision.bands for decision in decisions)
    capsys.readouterr()
