"""Every optimizer trains a small model, 200 steps at its default settings: parts [NAME...]"""

import tempfile
from statistics import fmean

from benchmarks import select_rows
from benchmarks.loop import NEVER, Prepared
from famx.registry import names

SMALL = ("model.d_model=64", "model.n_layers=2")


def main(words: list[str], steps: int = 200) -> None:
    """Prints the mean loss of the first and of the last ten steps on the embedded speech.

    Raises:
        SystemExit: the loss of an optimizer is not finite, or not lower at the end.
    """
    failed = []
    for name in select_rows(words, names("optim")):
        losses = train(name, steps)
        first = fmean(losses[:10])
        last = fmean(losses[-10:])
        print(f"{name:16}{first:8.3f} -> {last:8.3f}", flush=True)
        if not last < first:
            failed.append(name)
    if failed:
        raise SystemExit(f"no lower loss after {steps} steps: {', '.join(failed)}")


def train(optim: str, steps: int) -> list[float]:
    """Returns the loss of each step of an optimizer."""
    # the last step would evaluate
    prepared = Prepared(f"optim={optim}", *SMALL, f"trainer.max_steps={steps + 1}")
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = prepared.trainer(folder, NEVER)
        stream = trainer.gradients.prefetch(prepared.stream())
        for _ in range(steps):
            before = trainer.loss_sum.clone()
            trainer.advance(stream)
            losses.append((trainer.loss_sum - before).item())
    return losses
