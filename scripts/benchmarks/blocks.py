"""What each block of the source costs in a whole model: parameters, a training step, its memory: blocks [MODEL...]"""

import tempfile
from functools import partial
from statistics import median

from benchmarks import interleaved
from benchmarks.loop import NEVER, Prepared, famx_loop
from famx.analysis import cost

BLOCKS = (
    "adaptive_span",
    "content_update",
    "gated_pass",
    "integrated",
    "myelinated",
    "relative_force",
)
BLOCKS += ("sliding_window", "worm")


def main(words: list[str], steps: int = 4, rounds: int = 6) -> None:
    """A line for each model, its step as the embedded default takes it, beside the transformer's in turns.

    The memory is the most that a pass forward and backward over one batch allocates on top of the model.
    """
    usual = Prepared("model=transformer")
    stream = usual.stream()
    batches = [next(stream) for _ in range(steps)]
    print(
        f"{'model':16}{'parameters':>12}{'ms a step':>12}{'of transformer':>16}{'MB a pass':>12}{'of transformer':>16}"
    )
    for name in ("transformer", *(words or BLOCKS)):
        prepared = Prepared(f"model={name}")
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            loops = [
                famx_loop(each.trainer(folder, NEVER), batches)
                for each, folder in ((prepared, one), (usual, other))
            ]
            for loop in loops:
                loop(0)
            spent = interleaved(*loops, rounds)
        held = [cost.peak(partial(learn, each, batches[0][-1])) for each in (prepared, usual)]
        numel = sum(p.numel() for p in prepared.model.parameters())
        ratio = median(a / b for a, b in zip(*spent, strict=True))
        print(
            f"{name:16}{numel:12,}{1e3 * median(spent[0]) / steps:12.0f}{ratio:16.2f}"
            f"{held[0] / 2**20:12.0f}{held[0] / held[1]:16.2f}",
            flush=True,
        )


def learn(prepared: Prepared, batch: object) -> None:
    prepared.task.loss(prepared.model.train(), batch).backward()
    prepared.model.zero_grad()
