"""A whole training step under the microscope against one that nobody watches: watch=light (gate 1.01), watch=full."""

import tempfile

from benchmarks import interleaved, told
from benchmarks.loop import Prepared


def main(words: list[str], rounds: int = 12) -> None:
    """Prints both ratios, over whole intervals between reports; the words are of the command line of `famx.train`.

    The two take step by step in turns, for the machine's speed may change within an interval.
    """
    prepared = Prepared(*words, "trainer.max_steps=10000")
    every = prepared.settings.log_every
    stream = prepared.stream()
    batches = [next(stream) for _ in range(every)]
    for watch, gate in (("light", "1.01"), ("full", "")):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            trainers = [
                prepared.trainer(folder, every, setting)
                for folder, setting in ((one, watch), (other, "off"))
            ]
            steps = [
                lambda i, t=trainer: t.advance(iter([batches[i % every]])) for trainer in trainers
            ]
            interleaved(*steps, every)  # until the first report
            spent = interleaved(*steps, rounds * every)
            starts = range(0, rounds * every, every)
            told(
                f"watch={watch} / off",
                tuple([sum(x[i : i + every]) for i in starts] for x in spent),
                gate,
            )
