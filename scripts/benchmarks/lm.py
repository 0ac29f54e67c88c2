"""nanoGPT's CPU setting, famx against a bare loop of the same model, in turns of 100 steps: lm data.path=TEXT"""

import tempfile

from benchmarks import interleaved, told
from benchmarks.loop import NEVER, Prepared
from famx.experiment import run as experiment


def main(words: list[str]) -> None:
    """Prints the ratio of times, and the validation loss of both."""
    prepared = Prepared("experiment=shakespeare", *words)
    steps, streams = prepared.config["trainer"]["max_steps"], (prepared.stream(), prepared.stream())
    with tempfile.TemporaryDirectory() as folder:
        trainer, (bare, step) = prepared.trainer(folder, NEVER), prepared.bare()
        spent = interleaved(
            lambda _: [trainer.advance(streams[0]) for _ in range(100)],
            lambda _: [step(next(streams[1])[2]) for _ in range(100)],
            steps // 100,
        )
    told("famx / bare loop", spent, "1.05")
    held_out = experiment.data(prepared.config, "test")  # what nanoGPT validates on
    for name, model, seconds in (
        ("famx", trainer.model, sum(spent[0])),
        ("bare", bare, sum(spent[1])),
    ):
        loader = experiment.batches(prepared.config, held_out, prepared.tokenizer)
        found = experiment.evaluate(model, prepared.task, loader.plain(), prepared.device)
        print(
            f"{name}: {seconds:.1f} s, validation loss {found.loss:.3f} over {len(held_out)} blocks (gate 1.90)"
        )
