"""How anything is measured: side by side, in turns, since machines are noisy and absolute times prove nothing."""

import time
from collections.abc import Callable, Iterable
from statistics import median

import torch

from famx.analysis.cost import Spent, interleaved
from famx.notation import UserError
from famx.registry import suggest

__all__ = ["Spent", "asked", "copy_rate", "interleaved", "matrix_rate", "told"]


def asked(words: list[str], known: Iterable[str]) -> list[str]:
    """Those of the known that the words name, all when there are no words.

    Raises:
        UserError: a word names none.
    """
    known = list(known)
    for word in words:
        if word not in known:
            raise UserError(f"{word}: no such row{suggest(word, known)}")
    return [name for name in known if not words or name in words]


def told(name: str, spent: Spent, gate: str = "") -> None:
    """Prints how long the first took in units of the second."""
    ratios = [a / b for a, b in zip(*spent, strict=True)]
    line = f"{name}: min/min {min(spent[0]) / min(spent[1]):.3f}, median of ratios {median(ratios):.3f}"
    print(f"{line}{gate and f' (gate {gate})'}", flush=True)


def copy_rate(megabytes: int = 256) -> float:
    """Bytes a second that this machine reads and writes when it copies a large tensor."""
    source = torch.randn(megabytes * 2**18)
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / _fastest(lambda: target.copy_(source))


def matrix_rate(size: int = 1024) -> float:
    """Floating-point operations a second of a product of two square matrices."""
    a, b = torch.randn(2, size, size)
    return 2 * size**3 / _fastest(lambda: a @ b)


def _fastest(function: Callable[[], object], rounds: int = 10) -> float:
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        function()
        found.append(time.perf_counter() - started)
    return min(found)
