"""Every optimizer trains a small model on the embedded speech, 200 steps at its default settings: parts [NAME...]"""

import tempfile
from statistics import fmean

from benchmarks import asked
from benchmarks.loop import NEVER, Prepared
from famx.registry import names

SMALL = ("model.d_model=64", "model.n_layers=2")


def main(words: list[str], steps: int = 200) -> None:
    """Prints the mean loss of the first and of the last ten steps of each.

    Raises:
        SystemExit: one has lost its way: a loss that is not finite, or no lower at the end.
    """
    astray = []
    for name in asked(words, names("optim")):
        prepared = Prepared(
            f"optim={name}", *SMALL, f"trainer.max_steps={steps + 1}"
        )  # the last step would evaluate
        with tempfile.TemporaryDirectory() as folder:
            trainer, stream, losses = prepared.trainer(folder, NEVER), prepared.stream(), []
            for _ in range(steps):
                before = trainer.loss_sum.clone()
                trainer.advance(stream)
                losses.append((trainer.loss_sum - before).item())
        first, last = fmean(losses[:10]), fmean(losses[-10:])
        print(f"{name:16}{first:8.3f} -> {last:8.3f}", flush=True)
        if not last < first:
            astray.append(name)
    if astray:
        raise SystemExit(f"no lower loss after {steps} steps: {', '.join(astray)}")
