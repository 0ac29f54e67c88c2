"""A whole training step under the microscope against one that nobody watches: watch=light (gate 1.01), watch=full."""

import tempfile

from benchmarks import interleaved, told
from benchmarks.loop import Prepared, famx_loop


def main(words: list[str], rounds: int = 12) -> None:
    """Prints both ratios, over whole intervals between reports; the words are of the command line of `famx.train`."""
    prepared = Prepared(*words, "trainer.max_steps=10000")
    every = prepared.settings.log_every
    stream = prepared.stream()
    batches = [next(stream) for _ in range(every)]
    for watch, gate in (("light", "1.01"), ("full", "")):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            loops = [
                famx_loop(prepared.trainer(folder, every, setting), batches)
                for folder, setting in ((one, watch), (other, "off"))
            ]
            for loop in loops:
                loop(0)
            told(f"watch={watch} / off", interleaved(*loops, rounds), gate)
