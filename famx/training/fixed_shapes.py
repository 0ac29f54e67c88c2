"""Few fixed shapes of batches, for each of which CUDA has its kernels and a graph of the step.

The examples of an epoch are divided by length into buckets. All batches of a bucket have the same
number of rows and the same length, which depend on the data set and the options alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from famx.notation import SAMPLE_RATE

DEFAULT_SHAPES = 12  # of batches of speech on CUDA
CANDIDATES = 512  # lengths among which boundaries are chosen
# Samples that a recording may be longer than its data set states: rounding of its length, and of
# the gaps between joined recordings.
TOLERANCE = 16
ALIGNMENT = 16  # lengths are multiples of it, so that all rows begin at aligned addresses


class Shape(NamedTuple):
    """Shape of the batches of a bucket.

    Args:
        rows: number of examples.
        samples: number of samples that each input is padded to.
        tokens: number of token ids that each target is padded to.
    """

    rows: int
    samples: int
    tokens: int


def padded_samples(
    seconds: Float[np.ndarray, "*shape"], speed: Float[np.ndarray, "*factors"]
) -> Int[np.ndarray, "*result"]:
    """Returns the number of samples that recordings have at most after a change of speed.

    Args:
        seconds: durations before the change.
        speed: factors of speed, broadcast against the durations.
    """
    # as the augmentation rounds them
    percent = np.rint(100 * speed)
    samples = np.ceil(seconds * SAMPLE_RATE * 100 / percent) + TOLERANCE
    return (np.ceil(samples / ALIGNMENT) * ALIGNMENT).astype(np.int64)


def choose_shapes(
    lengths: Int[np.ndarray, " lengths"],
    n_epochs: int,
    budget: float,
    n_shapes: int,
    tokens: int,
    max_rows: int | None = None,
) -> list[Shape]:
    """Chooses the shapes with which the batches of an epoch have the least padding.

    Dynamic programming over pairs of neighbouring boundaries: the bucket of lengths in (i, j] has
    the padded size j·(examples in it), and its predecessor passes about half of a batch on to it,
    each of which is padded to j and not to i.

    Args:
        lengths: lengths of the examples of several epochs, in samples.
        n_epochs: number of these epochs.
        budget: samples of a batch, padding included.
        n_shapes: largest number of shapes.
        tokens: number of token ids that each target is padded to.
        max_rows: largest number of rows, None for any.

    Returns:
        The shapes by length. All lengths fit into the last one, which has at least one row.
    """
    # boundaries are chosen among lengths, each of which is that of equally many examples
    lengths = np.sort(lengths)
    ranks = np.linspace(0, len(lengths) - 1, min(len(lengths), CANDIDATES)).round().astype(int)
    candidates = np.unique(lengths[ranks])
    # number of examples of an epoch that fit into each of them
    counts = np.searchsorted(lengths, candidates, side="right") / n_epochs
    rows = np.clip(budget // candidates, 1, max_rows).astype(int)

    # size[i, j]: padded size of the bucket (i, j], infinite where it would be empty
    passed_on = np.minimum((rows - 1) / 2, counts)
    size = (counts - counts[:, None]) * candidates
    size += passed_on[:, None] * (candidates - candidates[:, None])
    size[np.tril_indices(len(candidates))] = np.inf

    # totals[k][j]: least size of k + 1 buckets that end at j; previous[k][j]: the end of the last
    # but one of k + 2 buckets
    totals = [counts * candidates]
    previous = []
    for _ in range(1, n_shapes):
        sums = totals[-1][:, None] + size
        totals.append(sums.min(0))
        previous.append(sums.argmin(0))

    # the best number of buckets, then their boundaries from the last to the first
    n_buckets = int(np.argmin([total[-1] for total in totals])) + 1
    boundaries = [len(candidates) - 1]
    for ends in reversed(previous[: n_buckets - 1]):
        boundaries.append(int(ends[boundaries[-1]]))
    return [Shape(int(rows[i]), int(candidates[i]), tokens) for i in reversed(boundaries)]


def fill_shapes(
    lengths: Int[np.ndarray, " items"], shapes: Sequence[Shape], rng: np.random.Generator
) -> list[tuple[list[int], Shape]]:
    """Assigns all indices, shuffled, to batches of the shapes.

    Indices that do not fill a batch move on to the next longer shape, so that at most the last
    batch of the longest shape has fewer rows. An example longer than all shapes, which a data set
    may have that joins other recordings in each epoch, is a batch of its own.

    Args:
        lengths: lengths in samples.

    Returns:
        The indices of each batch and its shape, the shortest first.
    """
    # index of the shortest shape that an example fits into
    buckets = np.searchsorted([shape.samples for shape in shapes], lengths)
    batches = []
    remaining = np.zeros(0, np.int64)
    for number, shape in enumerate(shapes):
        members = np.concatenate([remaining, np.flatnonzero(buckets == number)])
        members = rng.permutation(members)
        # full batches
        n_full = len(members) // shape.rows
        for indices in members[: n_full * shape.rows].reshape(n_full, shape.rows):
            batches.append((indices.tolist(), shape))
        remaining = members[n_full * shape.rows :]
    if len(remaining):
        batches.append((remaining.tolist(), shapes[-1]))
    # examples without a shape
    for index in np.flatnonzero(buckets == len(shapes)).tolist():
        batches.append(([index], Shape(1, int(lengths[index]), shapes[-1].tokens)))
    return batches
