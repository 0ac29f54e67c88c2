"""Ratios of times, measured interleaved: machines are noisy, and absolute times prove nothing."""

import importlib.util
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from types import ModuleType

import torch

from famx.analysis.cost import Timings, interleaved
from famx.notation import UserError, suggest

__all__ = [
    "Timings",
    "copy_rate",
    "interleaved",
    "load_reference",
    "matrix_rate",
    "print_ratio",
    "select_rows",
]

REFERENCES = Path(__file__).parents[2] / "tests" / "reference"


def select_rows(words: Sequence[str], rows: Iterable[str]) -> list[str]:
    """Returns the rows that the words name, all without words.

    Raises:
        UserError: a word names no row.
    """
    rows = list(rows)
    for word in words:
        if word not in rows:
            raise UserError(f"{word}: no such row{suggest(word, rows)}")
    return [row for row in rows if not words or row in words]


def print_ratio(name: str, timings: Timings, gate: str = "") -> None:
    """Prints the time of the first function in units of the second.

    Args:
        gate: the largest ratio that is accepted.
    """
    first, second = timings
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    fastest = min(first) / min(second)
    line = f"{name}: min/min {fastest:.3f}, median of ratios {median(ratios):.3f}"
    print(line + (f" (gate {gate})" if gate else ""), flush=True)


def load_reference(name: str) -> ModuleType:
    """Loads a module of tests/reference, the slow plain forms that parts are tested against."""
    spec = importlib.util.spec_from_file_location(name, REFERENCES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def copy_rate(megabytes: int = 256) -> float:
    """Returns the bytes per second that a copy of a large tensor reads and writes."""
    source = torch.randn(megabytes * 2**18)
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / _fastest(lambda: target.copy_(source))


def matrix_rate(size: int = 1024) -> float:
    """Returns the floating-point operations per second of a product of two square matrices."""
    a, b = torch.randn(2, size, size)
    return 2 * size**3 / _fastest(lambda: a @ b)


def _fastest(function: Callable[[], object], rounds: int = 10) -> float:
    """Returns the least seconds of several calls."""
    elapsed = []
    for _ in range(rounds):
        started = time.perf_counter()
        function()
        elapsed.append(time.perf_counter() - started)
    return min(elapsed)
