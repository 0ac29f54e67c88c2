"""The share of padding in batches of lengths like LibriSpeech's: most 12 to 16 s, some 1.5 s."""

import numpy as np

from famx.training.loader import cut_into_batches, shuffle_in_buckets

N_UTTERANCES = 20_000
N_BUCKETS = 30
BATCH_SECONDS = 200.0


def main(words: list[str]) -> None:
    """Prints the share of padding."""
    rng = np.random.default_rng(0)
    # lengths in seconds
    is_long = rng.random(N_UTTERANCES) < 0.7
    long = rng.normal(14.2, 1.2, N_UTTERANCES)
    short = rng.uniform(1.5, 14, N_UTTERANCES)
    lengths = np.where(is_long, long, short)
    order = shuffle_in_buckets(lengths, N_BUCKETS, rng)
    batches = cut_into_batches(order, lengths, BATCH_SECONDS)
    # a batch is as long as its longest utterance
    padded_seconds = sum(len(batch) * lengths[batch].max() for batch in batches)
    share = 1 - lengths.sum() / padded_seconds
    print(f"{100 * share:.2f} % of the batches of {N_BUCKETS} buckets is padding (gate 5 %)")
