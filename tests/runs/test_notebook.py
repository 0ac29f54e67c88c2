"""The notebook, whose cells run in their order as a reader would run them, with fewer steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "first_afternoon.ipynb"


def cells(kind):
    notebook = json.loads(NOTEBOOK.read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


@pytest.mark.slow
def test_cells_run_in_their_order(tmp_path):
    code = "\n\n".join(cells("code"))
    # one report of the optimizer, which needs 32 steps
    assert "STEPS = 120" in code and "trainer.log_every=40" in code
    code = code.replace("STEPS = 120", "STEPS = 40").replace("seed=0,1", "seed=0")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr + finished.stdout
    assert (tmp_path / "runs" / "blocks" / "compare.png").stat().st_size > 1000
    assert "bands/gradients" in finished.stdout
    assert "attention=sharp keeps all of its" in finished.stdout


def test_notebook_is_short_and_holds_no_results():
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len(notebook["cells"]) <= 12
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            # a script runs it too
            compile("".join(cell["source"]), "cell", "exec")


def test_links_of_the_notebook_lead_to_pages():
    text = "\n".join(cells("markdown"))
    pages = [link.split(")")[0].split("#")[0] for link in text.split("](")[1:]]
    assert pages
    for page in pages:
        assert (NOTEBOOK.parent / page).is_file(), page
