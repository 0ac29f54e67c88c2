"""Seconds of audio a second that the baseline trains at, loading and features included, for a minute."""

import time

from benchmarks.loop import Prepared


def main(words: list[str], seconds: float = 60) -> None:
    """Prints the speed; the words are of the command line of `famx.train`."""
    prepared = Prepared(*words, "trainer.max_steps=100000")
    (model, step), stream, audio = prepared.bare(), prepared.stream(), 0.0
    for _ in range(5):
        step(next(stream)[2])
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        batch = next(stream)[2]
        step(batch)
        audio += batch.seconds
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{audio / (time.perf_counter() - started):.0f} s of audio a second, {parameters:,} parameters (gate 150)"
    )
