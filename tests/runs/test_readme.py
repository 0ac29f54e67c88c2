"""What the README shows works as it stands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from famx import contracts
from famx.registry import PARTS, load_file

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_example_of_an_own_block_has_16_lines_trains_and_keeps_every_law(tmp_path):
    (block,) = re.findall(r"```python\n(\"\"\".*?)```", README, re.DOTALL)
    assert len(block.strip().splitlines()) == 16
    file = tmp_path / "sharp.py"
    file.write_text(block)
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be " * 99)
    words = [
        "task=lm",
        "data=text",
        f"data.path={text}",
        "trainer.max_steps=2",
        "attention=sharp",
        "attention.sharpness=5",
    ]
    words += [
        f"famx_parts=[{file}]",
        "model.d_model=16",
        "model.n_layers=1",
        f"hydra.run.dir={tmp_path}/run",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "famx.train", *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    evaluate = [sys.executable, "-m", "famx.evaluate", f"{tmp_path}/run"]
    refused = subprocess.run(evaluate, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2 and "famx_parts=[sharp.py]" in refused.stderr
    (printed,) = [line for line in done.stdout.splitlines() if "famx.evaluate" in line]
    assert shlex.split(printed)[3:] == [f"{tmp_path}/run", f"famx_parts=[{file}]"]
    scored = subprocess.run(
        [*evaluate, f"famx_parts=[{file}]"], capture_output=True, text=True, timeout=120
    )
    assert scored.returncode == 0, scored.stderr
    load_file(file)
    try:
        for law in contracts.applicable("attention", PARTS["attention"]["sharp"]).values():
            law(PARTS["attention"]["sharp"])
    finally:
        del PARTS["attention"]["sharp"]
