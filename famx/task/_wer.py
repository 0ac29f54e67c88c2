"""Word and character errors."""

from collections.abc import Sequence
from typing import NamedTuple

import jiwer
import numpy as np


class Errors(NamedTuple):
    """Edits between references and hypotheses, over all utterances, and the interval of their rate.

    `rate` is (substitutions + deletions + insertions) / `units`; `low` and `high` bound it with 95 % confidence
    (bootstrap over utterances, Bisani & Ney 2004).
    """

    rate: float
    substitutions: int
    deletions: int
    insertions: int
    units: int
    low: float
    high: float


def edits(
    references: Sequence[str], hypotheses: Sequence[str], unit: str
) -> tuple[np.ndarray, np.ndarray]:
    """Substitutions, deletions and insertions of each utterance, and the units of its reference.

    Args:
        unit: `word` or `char`.
    """
    process = {"word": jiwer.process_words, "char": jiwer.process_characters}[unit]
    each = [
        process(reference, hypothesis)
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]
    counts = np.array([[e.substitutions, e.deletions, e.insertions] for e in each])
    return counts, np.array([e.hits + e.substitutions + e.deletions for e in each])


def errors(
    references: Sequence[str], hypotheses: Sequence[str], unit: str, resamples: int = 1000
) -> Errors:
    """Counts the edits over words or characters, `unit` is one of `word` and `char`."""
    counts, units = edits(references, hypotheses, unit)
    drawn = np.random.default_rng(0).integers(len(units), size=(resamples, len(units)))
    rates = counts.sum(1)[drawn].sum(1) / np.maximum(1, units[drawn].sum(1))
    low, high = np.quantile(rates, [0.025, 0.975])
    substitutions, deletions, insertions = (int(n) for n in counts.sum(0))
    rate = float(counts.sum() / max(1, units.sum()))
    return Errors(
        rate, substitutions, deletions, insertions, int(units.sum()), float(low), float(high)
    )
