"""The cost of each block of the seed in a model: parameters, step, memory: blocks [MODEL...]"""

import tempfile
from functools import partial
from statistics import median

from benchmarks import interleaved
from benchmarks.loop import NEVER, Prepared, famx_loop
from famx.analysis import cost
from famx.nn.batch import Batch

BLOCKS = (
    "adaptive_span",
    "content_update",
    "gated_pass",
    "integrated",
    "myelinated",
    "relative_force",
    "sliding_window",
    "worm",
)


def main(words: list[str], steps: int = 4, rounds: int = 6) -> None:
    """Prints a line for each model: its training step, interleaved with the transformer's.

    The memory is the peak that a pass forward and backward over one batch allocates.
    """
    baseline = Prepared("model=transformer")
    stream = baseline.stream()
    batches = [next(stream) for _ in range(steps)]
    print(
        f"{'model':16}{'parameters':>12}{'ms a step':>12}{'of transformer':>16}"
        f"{'MB a pass':>12}{'of transformer':>16}"
    )
    for name in ("transformer", *(words or BLOCKS)):
        prepared = Prepared(f"model={name}")
        # time
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
            loop = famx_loop(prepared.trainer(folder, NEVER), batches)
            baseline_loop = famx_loop(baseline.trainer(other, NEVER), batches)
            loop(0)
            baseline_loop(0)
            seconds, baseline_seconds = interleaved(loop, baseline_loop, rounds)
        ratio = median(a / b for a, b in zip(seconds, baseline_seconds, strict=True))
        # memory
        batch = batches[0][-1]
        memory = cost.peak(partial(train, prepared, batch))
        baseline_memory = cost.peak(partial(train, baseline, batch))
        parameters = sum(p.numel() for p in prepared.experiment.model.parameters())
        print(
            f"{name:16}{parameters:12,}{1e3 * median(seconds) / steps:12.0f}{ratio:16.2f}"
            f"{memory / 2**20:12.0f}{memory / baseline_memory:16.2f}",
            flush=True,
        )


def train(prepared: Prepared, batch: Batch) -> None:
    """Runs a pass forward and backward."""
    model = prepared.experiment.model
    prepared.experiment.task.loss(model.train(), batch).backward()
    model.zero_grad()
