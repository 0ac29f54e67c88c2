"""Word and character error rates (jiwer), with bootstrap intervals over utterances."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import jiwer
import numpy as np

from famx.task.base import Confusion, ErrorCounts, Score

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


class TextScores:
    """The scores of a task whose hypotheses are texts: error rates of words and characters."""

    def score(self, references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, Score]:
        """Computes word and character error rates."""
        return {name: error_rate(references, hypotheses, unit) for name, unit in UNITS.items()}

    def error_counts(self, references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
        """Returns errors and units of each utterance, of words and of characters."""
        counts = {}
        for name, unit in UNITS.items():
            errors, units = edits(references, hypotheses, unit)
            counts[name] = (errors.sum(1), units)
        return counts

    def confusions(self, references: Sequence[str], hypotheses: Sequence[str]) -> list[Confusion]:
        """Counts the pairs of words that are substituted, and those inserted and deleted."""
        counts: Counter[tuple[str, str]] = Counter()
        for reference, hypothesis in zip(references, hypotheses, strict=True):
            counts.update(_wrong_pairs(reference, hypothesis))
        # of equal counts, in alphabetical order
        pairs = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return [Confusion(*pair, times) for pair, times in pairs]

    def differences(
        self, ids: Sequence[str], references: Sequence[str], hypotheses: Sequence[str]
    ) -> str:
        """Returns the words of each utterance with errors, the hypothesis below the reference."""
        return aligned_differences(ids, references, hypotheses)


def aligned_differences(
    ids: Sequence[str], references: Sequence[str], hypotheses: Sequence[str]
) -> str:
    """Returns the words of each text with errors, the hypothesis below the reference."""
    parts = []
    for name, reference, hypothesis in zip(ids, references, hypotheses, strict=True):
        output = jiwer.process_words(reference, hypothesis)
        if output.substitutions + output.deletions + output.insertions:
            text = jiwer.visualize_alignment(output, show_measures=False)
            # without the number of the sentence, which is always 1
            lines = [line for line in text.splitlines()[1:] if line.strip()]
            parts.append("\n".join([name, *lines]))
    return "\n\n".join(parts)


UNITS = {"wer": "word", "cer": "char"}
"""Names of the error rates -> what they count."""


def _wrong_pairs(reference: str, hypothesis: str) -> Iterator[tuple[str, str]]:
    """Yields each word with the word in its place; "" for none."""
    output = jiwer.process_words(reference, hypothesis)
    for chunk in output.alignments[0]:
        before = output.references[0][chunk.ref_start_idx : chunk.ref_end_idx]
        after = output.hypotheses[0][chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type != "equal":
            # a substitution has as many words on both sides, others have words on one side
            yield from zip_longest(before, after, fillvalue="")
