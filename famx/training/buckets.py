"""Batches of similar lengths: shuffled groups of neighbouring lengths, cut by a budget."""

import numpy as np
from jaxtyping import Float, Int


def shuffle_in_buckets(
    lengths: Float[np.ndarray, " items"], n_buckets: int, rng: np.random.Generator
) -> Int[np.ndarray, " items"]:
    """Returns all indices by length, shuffled inside each of `n_buckets` equally large groups."""
    buckets = np.array_split(np.argsort(lengths, kind="stable"), n_buckets)
    return np.concatenate([rng.permutation(bucket) for bucket in buckets])


def cut_into_batches(
    order: Int[np.ndarray, " selected"], lengths: Float[np.ndarray, " items"], budget: float
) -> list[list[int]]:
    """Cuts indices, in their order, into batches with rows · longest <= budget.

    A batch has at least one item, even if that is longer than the budget.
    """
    batches: list[list[int]] = []
    longest = 0.0
    for index in order:
        # a longer item makes all rows of the batch longer
        longest = max(longest, float(lengths[index]))
        if not batches or longest * (len(batches[-1]) + 1) > budget:
            batches.append([])
            longest = float(lengths[index])
        batches[-1].append(int(index))
    return batches
