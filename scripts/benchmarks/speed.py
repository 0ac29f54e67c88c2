"""Seconds of audio per second that the baseline trains on, loading and features included."""

import time

from benchmarks.loop import Prepared

WARMUP_STEPS = 5


def main(words: list[str], seconds: float = 60) -> None:
    """Prints the speed over a minute; the words are of the command line of `famx.train`."""
    prepared = Prepared(*words, "trainer.max_steps=100000")
    model, step = prepared.bare()
    stream = prepared.stream()
    # the first steps allocate memory and start workers
    for _ in range(WARMUP_STEPS):
        _, _, batch = next(stream)
        step(batch)
    amount = 0.0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        _, _, batch = next(stream)
        step(batch)
        amount += batch.amount
    speed = amount / (time.perf_counter() - started)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{speed:.0f} s of audio a second, {parameters:,} parameters (gate 150)")
