"""Decoded recordings in memory that all processes of a loader share."""

import mmap
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int16


class SampleCache:
    """Samples of recordings, each of which is stored by the process that decodes it first.

    Each recording has its position in one block of shared memory. Processes that are forked
    afterwards see what the others store, so that with any number of workers a recording is decoded
    once. A process that is not forked has a cache of its own. Memory is allocated when a recording
    is stored; two processes that store the same recording write the same values.

    Args:
        sizes: largest number of samples of each recording.
        n_bytes: limit of the memory; the first recordings are stored, as far as they fit.
    """

    def __init__(self, sizes: Sequence[int], n_bytes: int) -> None:
        self._sizes = list(sizes)
        self.n_bytes = n_bytes
        # positions of the recordings that fit
        ends = np.cumsum(self._sizes, dtype=np.int64)
        n_stored = int(np.searchsorted(ends * np.dtype(np.int16).itemsize, n_bytes, side="right"))
        self._ends = ends[:n_stored]
        n_samples = int(self._ends[-1]) if n_stored else 0
        # number of samples of each, 0 until it is stored
        self._lengths = _shared_zeros(n_stored, np.int32)
        self._samples = _shared_zeros(n_samples, np.int16)

    def __reduce__(self) -> tuple[type["SampleCache"], tuple[list[int], int]]:
        return type(self), (self._sizes, self.n_bytes)

    def get(self, index: int) -> Int16[np.ndarray, " n"] | None:
        """Returns the samples of a recording, None if they are not stored."""
        if index >= len(self._lengths) or not self._lengths[index]:
            return None
        start = self._ends[index] - self._sizes[index]
        return self._samples[start : start + self._lengths[index]]

    def put(self, index: int, samples: Int16[np.ndarray, " n"]) -> None:
        """Stores the samples of a recording, if there is memory for them."""
        if index >= len(self._lengths) or len(samples) > self._sizes[index]:
            return
        start = self._ends[index] - self._sizes[index]
        self._samples[start : start + len(samples)] = samples
        # last, since other processes read the samples from now on
        self._lengths[index] = len(samples)


def _shared_zeros(size: int, dtype: type[np.generic]) -> np.ndarray:
    """Returns an array in memory that is shared with forked processes."""
    # an anonymous map of shared pages, which must not be empty
    n_bytes = max(1, size * np.dtype(dtype).itemsize)
    return np.frombuffer(mmap.mmap(-1, n_bytes), dtype, size)
