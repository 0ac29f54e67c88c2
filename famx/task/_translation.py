"""Scores of translations (sacrebleu): BLEU and chrF, with bootstrap intervals over sentences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from famx.task.base import Score

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

# how sacrebleu divides a sentence into the words of BLEU
BleuWords = Literal["13a", "intl", "zh", "char", "none"]


@dataclass(frozen=True)
class TranslationScore(Score):
    """A score of sacrebleu as a fraction: in percent it is the number that sacrebleu prints.

    Args:
        signature: sacrebleu's settings and version; scores of unlike signatures differ in more than
            the translations.
    """

    signature: str

    higher_is_better: ClassVar[bool] = True


def bleu(
    references: Sequence[str], hypotheses: Sequence[str], words: BleuWords = "13a"
) -> TranslationScore:
    """Computes `BLEU = min(1, e^(1 - r/c)) (p_1 p_2 p_3 p_4)^(1/4)` (Papineni et al. 2002).

    p_n is the share of the n-grams of words of the hypotheses that are in their references, r and c
    are the numbers of words of the references and of the hypotheses. Where no reference has four
    words, the mean is over the n that some has, and the signature has `eff:yes`.

    Args:
        words: how sentences are divided into words.
    """
    # imported late, since no other task needs it
    from sacrebleu.metrics.bleu import BLEU

    # forced: references are as they are written, also where they look divided into words
    metric = BLEU(tokenize=words, force=True)
    if not metric.corpus_score(references, [references]).score:
        metric = BLEU(tokenize=words, force=True, effective_order=True)
    return _score(metric, references, hypotheses)


def chrf(references: Sequence[str], hypotheses: Sequence[str]) -> TranslationScore:
    """Computes chrF2: `5 P R / (4 P + R)` of n-grams of up to 6 characters (Popović 2015)."""
    from sacrebleu.metrics.chrf import CHRF

    return _score(CHRF(), references, hypotheses)


def _score(
    metric: "Metric", references: Sequence[str], hypotheses: Sequence[str], resamples: int = 1000
) -> TranslationScore:
    """Computes a score, and its 95 % interval by a bootstrap over sentences (Koehn 2004)."""
    # (sentences, counts) from whose sums the score follows
    counts = np.array(metric._extract_corpus_statistics(hypotheses, [references]), np.float64)
    # how often each sentence is in a sample of equally many, drawn with replacement
    total = len(references)
    times = np.random.default_rng(0).multinomial(total, [1 / total] * total, size=resamples)
    low, high = np.quantile([_rate(metric, sums) for sums in times @ counts], [0.025, 0.975])
    rate = _rate(metric, counts.sum(0))
    return TranslationScore(rate, float(low), float(high), str(metric.get_signature()))


def _rate(metric: "Metric", sums: np.ndarray) -> float:
    # sacrebleu's own classes have a score, which is in percent
    score: float = metric._compute_score_from_stats(sums.tolist()).score
    return score / 100
