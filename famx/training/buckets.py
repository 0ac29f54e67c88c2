"""Batches of similar lengths: shuffled groups of neighbouring lengths, cut by budgets."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


def shuffle_in_buckets(
    lengths: Float[np.ndarray, " items"], n_buckets: int, rng: np.random.Generator
) -> Int[np.ndarray, " items"]:
    """Returns all indices by length, shuffled inside each of `n_buckets` equally large groups."""
    buckets = np.array_split(np.argsort(lengths, kind="stable"), n_buckets)
    return np.concatenate([rng.permutation(bucket) for bucket in buckets])


class Budget(NamedTuple):
    """A limit of a batch: rows · longest <= limit.

    Args:
        sizes: sizes of all items, such as seconds or tokens.
        limit: limit of the padded size of a batch, in the same unit.
    """

    sizes: Float[np.ndarray, " items"]
    limit: float


def cut_into_batches(order: Int[np.ndarray, " selected"], *budgets: Budget) -> list[list[int]]:
    """Cuts indices, in their order, into batches within all budgets.

    A batch has at least one item, even if that is larger than a budget.
    """
    batches: list[list[int]] = []
    longest = [0.0 for _ in budgets]
    for index in order:
        sizes = [float(budget.sizes[index]) for budget in budgets]
        # a longer item makes all rows of the batch longer
        longest = list(map(max, longest, sizes))
        rows = len(batches[-1]) + 1 if batches else 1
        pairs = zip(longest, budgets, strict=True)
        if not batches or any(size * rows > budget.limit for size, budget in pairs):
            batches.append([])
            longest = sizes
        batches[-1].append(int(index))
    return batches
