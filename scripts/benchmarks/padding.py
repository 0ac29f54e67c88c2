"""The share of padding in batches of lengths like LibriSpeech's: most 12 to 16 s, some 1.5 s."""

import numpy as np

from famx.notation import SAMPLE_RATE
from famx.training.buckets import Budget, cut_into_batches, shuffle_in_buckets
from famx.training.fixed_shapes import choose_shapes, fill_shapes, padded_samples
from famx.training.loader_config import LoaderConfig

N_UTTERANCES = 20_000
N_BUCKETS = 30
BATCH_SECONDS = 200.0
N_SHAPES = 12


def main(words: list[str]) -> None:
    """Prints the share of padding, without and with fixed shapes."""
    rng = np.random.default_rng(0)
    # lengths in seconds
    is_long = rng.random(N_UTTERANCES) < 0.7
    long = rng.normal(14.2, 1.2, N_UTTERANCES)
    short = rng.uniform(1.5, 14, N_UTTERANCES)
    lengths = np.where(is_long, long, short)
    order = shuffle_in_buckets(lengths, N_BUCKETS, rng)
    batches = cut_into_batches(order, Budget(lengths, BATCH_SECONDS))
    # a batch is as long as its longest utterance
    padded_seconds = sum(len(batch) * lengths[batch].max() for batch in batches)
    share = 1 - lengths.sum() / padded_seconds
    print(f"{100 * share:.2f} % of the batches of {N_BUCKETS} buckets is padding (gate 5 %)")
    share = fixed_share(lengths, np.array(LoaderConfig().speed), rng)
    print(f"{100 * share:.2f} % of the batches of {N_SHAPES} fixed shapes is padding (gate 6 %)")


def fixed_share(
    seconds: np.ndarray, speeds: np.ndarray, rng: np.random.Generator, n_shapes: int = N_SHAPES
) -> float:
    """Returns the share of padding in an epoch of batches of fixed shapes."""
    # the shapes are those of all speeds, an epoch has one speed for each recording
    possible = padded_samples(seconds[:, None], speeds).flatten()
    budget = BATCH_SECONDS * SAMPLE_RATE
    shapes = choose_shapes(possible, len(speeds), budget, n_shapes, tokens=0)
    speed = rng.choice(speeds, len(seconds))
    batches = fill_shapes(padded_samples(seconds, speed), shapes, rng)
    padded = sum(len(indices) * shape.samples for indices, shape in batches)
    return 1 - (seconds / speed).sum() * SAMPLE_RATE / padded
