"""Times of work on a GPU, and the page on which `benchmarks.gpu` prints them."""

import time
from collections.abc import Callable
from statistics import median

import torch

BLOCKS = 5  # of equal calls, interleaved with those of the other function
TITLE_WIDTH = 52


def milliseconds(*functions: Callable[[], object], calls: int = 20, warmup: int = 5) -> list[float]:
    """Returns the wall milliseconds of a call of each function, the median of interleaved blocks.

    A block is `calls` calls and one wait for the device, so the work of the host counts where it
    is slower than the device.
    """
    for function in functions:
        for _ in range(warmup):
            function()
    elapsed: list[list[float]] = [[] for _ in functions]
    for _ in range(BLOCKS):
        for times, function in zip(elapsed, functions, strict=True):
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(calls):
                function()
            torch.cuda.synchronize()
            times.append(1e3 * (time.perf_counter() - started) / calls)
    return [median(times) for times in elapsed]


def copy_rate() -> float:
    """Returns the bytes per second that a copy of 1 GB reads and writes."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    (elapsed,) = milliseconds(lambda: target.copy_(source))
    return 2 * source.nbytes / elapsed * 1e3


def matrix_rate(size: int = 8192) -> float:
    """Returns the FLOPs per second of a product of two square bf16 matrices."""
    a, b = torch.randn(2, size, size, device="cuda", dtype=torch.bfloat16)
    (elapsed,) = milliseconds(lambda: a @ b)
    return 2 * size**3 / elapsed * 1e3


class Page:
    """Prints a row for each result, and at the end the gates that are missed."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def section(self, title: str) -> None:
        print(f"\n{title}", flush=True)

    def row(self, title: str, value: float, *notes: str, most: float = 0, least: float = 0) -> None:
        """Prints a value, its gate if it has one, and notes.

        Args:
            most, least: the gate: the largest or the smallest value that is accepted.
        """
        gate = ""
        if most or least:
            gate = f"gate <= {most:g}" if most else f"gate >= {least:g}"
            is_met = value <= most if most else value >= least
            if not is_met:
                self.missed.append(f"{title}: {value:.3g}, {gate}")
                gate += " MISSED"
        number = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
        line = f"  {title:{TITLE_WIDTH}}{number:>9}  {gate:20} {'; '.join(notes)}"
        print(line.rstrip(), flush=True)

    def close(self) -> None:
        """Prints the gates that are missed."""
        print(f"\n{len(self.missed)} gates missed")
        for line in self.missed:
            print(f"  {line}")
