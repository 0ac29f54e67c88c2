"""Sweeps: from run to run, two runs at once against one after the other, and a repeated sweep."""

import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

TEXT = """\
task=lm data=text data.block=64 model.d_model=64 model.n_heads=4 model.n_layers=2 trainer.device=cpu
trainer.eval_every=100000"""
# writes the time of the first step of a run
CLOCK = '''"""Touches a file after the first step."""

from famx.registry import register
from famx.training.hooks import Hook, SaveCheckpoints


@register("hook")
class Clock(Hook):
    def after_step(self, trainer):
        if trainer.step == 1:
            (trainer.hook(SaveCheckpoints).run_dir.path / "first_step").touch()
'''


def main(words: Sequence[str]) -> int:
    """Prints the three figures, each with its gate."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "clock.py").write_text(CLOCK)
        _sweep(root / "warm", "seed=0,1", "trainer.max_steps=2")
        print(f"from the end of a run to the first step of the next: {_gap(root):.2f} s (3)")
        one = _sweep(root / "one", "seed=0,1,2,3", "trainer.max_steps=300", "trainer.threads=2")
        two = _sweep(root / "two", "seed=0,1,2,3", "trainer.max_steps=300", "sweep.jobs=2")
        print(f"4 runs of 300 steps, two at once / one after the other: {two / one:.2f} (0.8)")
        fifty = ("seed=range(0,50)", "trainer.max_steps=1", "sweep.jobs=2")
        first = _sweep(root / "fifty", *fifty)
        again = _sweep(root / "fifty", *fifty)
        print(f"a sweep of 50: {first:.0f} s, repeated when it is finished: {again:.1f} s (10)")
    return 0


def _gap(root: Path) -> float:
    """Returns the longest time between the end of a run and the first step of the next."""
    words = ("seed=0,1,2,3", "trainer.max_steps=20", f"famx_parts=[{root}/clock.py]")
    _sweep(root / "gap", *words)
    gaps = []
    for seed in (1, 2, 3):
        end = (root / "gap" / f"seed={seed - 1}" / "result.json").stat().st_mtime
        gaps.append((root / "gap" / f"seed={seed}" / "first_step").stat().st_mtime - end)
    return max(gaps)


def _sweep(folder: Path, *words: str) -> float:
    """Returns the wall time of a sweep in seconds."""
    command = [sys.executable, "-m", "famx.train", "-m", *shlex.split(TEXT), *words]
    started = time.monotonic()
    subprocess.run([*command, f"hydra.sweep.dir={folder}"], check=True, capture_output=True)
    return time.monotonic() - started
