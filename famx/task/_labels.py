"""Scores of labels: accuracy and macro F1 with their intervals, and the confusion matrix."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int

from famx.task.base import Score


@dataclass(frozen=True)
class LabelScore(Score):
    """rate = 1 - accuracy.

    Args:
        wrong: number of wrong labels.
        labels: number of labels.
    """

    wrong: int
    labels: int

    @property
    def counts(self) -> dict[str, int]:
        return {"wrong": self.wrong, "of": self.labels}


def label_error(references: Sequence[str], hypotheses: Sequence[str]) -> LabelScore:
    """Returns 1 - accuracy, with the interval of Wilson (1927)."""
    # imported late: it takes a second
    from scipy.stats import binomtest

    wrong = sum(a != b for a, b in zip(references, hypotheses, strict=True))
    total = len(references)
    interval = binomtest(wrong, total).proportion_ci(method="wilson")
    return LabelScore(wrong / total, float(interval.low), float(interval.high), wrong, total)


def macro_f1(references: Sequence[str], hypotheses: Sequence[str], resamples: int = 1000) -> Score:
    """Returns 1 - macro F1: the mean of 1 - F1 over the labels that occur in the references.

    F1 = 2 hits / (references + hypotheses) of a label. The interval is a bootstrap over sequences.
    """
    counts = confusion_matrix(references, hypotheses, sorted({*references, *hypotheses}))
    total = len(references)
    # the same number of sequences, sampled with replacement
    rng = np.random.default_rng(0)
    samples = rng.multinomial(total, counts.flatten() / total, size=resamples)
    low, high = np.quantile(_f1_errors(samples.reshape(-1, *counts.shape)), [0.025, 0.975])
    rate = float(_f1_errors(counts[None])[0])
    return Score(rate, float(low), float(high))


def confusion_matrix(
    references: Sequence[str], hypotheses: Sequence[str], labels: Sequence[str]
) -> Int[np.ndarray, "labels labels"]:
    """Counts the sequences by the label of the reference (row) and of the hypothesis (column)."""
    index = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), np.int64)
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        counts[index[reference], index[hypothesis]] += 1
    return counts


def _f1_errors(counts: Int[np.ndarray, "n labels labels"]) -> Float64[np.ndarray, " n"]:
    """Returns 1 - macro F1 of each confusion matrix."""
    hits = np.diagonal(counts, axis1=1, axis2=2)
    of_reference = counts.sum(2)
    of_hypothesis = counts.sum(1)
    f1 = 2 * hits / np.maximum(1, of_reference + of_hypothesis)
    occurs = of_reference > 0
    return 1 - (f1 * occurs).sum(1) / occurs.sum(1)
