"""Training steps with the optimizer probe, in units of those without: probe=light, probe=full."""

import tempfile
from collections.abc import Callable

from benchmarks import interleaved, print_ratio
from benchmarks.loop import Prepared
from famx.nn.batch import Batch
from famx.training.trainer import MIN_REPORT_STEPS, Trainer

GATES = {"light": "1.01", "full": ""}


def main(words: list[str], rounds: int = 12) -> None:
    """Prints both ratios, over the intervals between reports; the words are those of `famx.train`.

    The two alternate step by step, since the machine's speed may change within an interval.
    """
    prepared = Prepared(*words, "trainer.max_steps=10000")
    interval = MIN_REPORT_STEPS
    stream = prepared.stream()
    batches = [next(stream) for _ in range(interval)]
    for level, gate in GATES.items():
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
            probed = step_function(prepared.trainer(folder, interval, level), batches)
            baseline = step_function(prepared.trainer(other, interval, "off"), batches)
            interleaved(probed, baseline, interval)  # up to the first report
            seconds, baseline_seconds = interleaved(probed, baseline, rounds * interval)
        # the probe works in some steps of an interval alone
        timings = (sum_intervals(seconds, interval), sum_intervals(baseline_seconds, interval))
        print_ratio(f"probe={level} / off", timings, gate)


def step_function(
    trainer: Trainer, batches: list[tuple[int, int, Batch]]
) -> Callable[[int], object]:
    """Returns a function of the round that takes one step on its batch."""
    return lambda i: trainer.advance(trainer.gradients.prefetch([batches[i % len(batches)]]))


def sum_intervals(seconds: list[float], interval: int) -> list[float]:
    """Returns the sums over intervals of so many steps."""
    return [sum(seconds[i : i + interval]) for i in range(0, len(seconds), interval)]
