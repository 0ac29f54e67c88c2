"""Word and character error rates (jiwer), with bootstrap intervals over utterances."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jiwer
import numpy as np

from famx.task.base import Score

Output = jiwer.WordOutput | jiwer.CharacterOutput

_PROCESS: dict[str, Callable[[str, str], Output]] = {
    "word": jiwer.process_words,
    "char": jiwer.process_characters,
}


@dataclass(frozen=True)
class ErrorRate(Score):
    """rate = (substitutions + deletions + insertions) / units, over all utterances.

    `low` and `high` bound it with 95 % confidence (bootstrap over utterances, Bisani & Ney 2004).

    Args:
        units: words or characters of the references.
    """

    substitutions: int
    deletions: int
    insertions: int
    units: int

    @property
    def counts(self) -> dict[str, int]:
        return {
            "sub": self.substitutions,
            "del": self.deletions,
            "ins": self.insertions,
            "of": self.units,
        }


def edits(
    references: Sequence[str], hypotheses: Sequence[str], unit: str
) -> tuple[np.ndarray, np.ndarray]:
    """Counts the edits of each utterance.

    Args:
        unit: `word` or `char`.

    Returns:
        (utterances, 3) substitutions, deletions and insertions; (utterances,) units of references.
    """
    counts = []
    units = []
    # counted per utterance, since intervals are over utterances
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        result = _PROCESS[unit](reference, hypothesis)
        counts.append([result.substitutions, result.deletions, result.insertions])
        units.append(result.hits + result.substitutions + result.deletions)
    return np.array(counts), np.array(units)


def error_rate(
    references: Sequence[str], hypotheses: Sequence[str], unit: str, resamples: int = 1000
) -> ErrorRate:
    """Computes the error rate over words or characters; `unit` is `word` or `char`."""
    counts, units = edits(references, hypotheses, unit)
    # bootstrap: rates of equally many utterances, sampled with replacement
    sampled = np.random.default_rng(0).integers(len(units), size=(resamples, len(units)))
    errors = counts.sum(1)[sampled].sum(1)
    rates = errors / np.maximum(1, units[sampled].sum(1))
    low, high = np.quantile(rates, [0.025, 0.975])
    substitutions, deletions, insertions = (int(n) for n in counts.sum(0))
    return ErrorRate(
        rate=float(counts.sum() / max(1, units.sum())),
        low=float(low),
        high=float(high),
        substitutions=substitutions,
        deletions=deletions,
        insertions=insertions,
        units=int(units.sum()),
    )
