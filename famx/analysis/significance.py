"""Differences between settings, with confidence intervals."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from famx.analysis.runs import Run, Setting

CONFIDENCE = 0.95
RESAMPLES = 10_000
CHUNKS = 10  # chunks of resamples, since all at once need much memory


class Difference(NamedTuple):
    """The paired difference in error rate between two settings, with its confidence interval.

    Args:
        mean: error rate of the second setting minus that of the first, over the seeds of both.
        low: lower end of the interval; NaN if the uncertainty is unknown: for a loss from one seed,
            without a pair of runs, and if a run has diverged.
        high: upper end of the interval.
        pairs: number of pairs of runs with the same seed.
        higher_is_better: whether a higher rate is better.
    """

    mean: float
    low: float
    high: float
    pairs: int
    higher_is_better: bool = False

    @property
    def verdict(self) -> str:
        """Returns whether the second setting is better; `not shown` if the interval includes 0."""
        if np.isnan(self.low):
            return "not known" if self.pairs else "no seed\nin common"
        verdict = verdict_of(self.low, self.high, self.higher_is_better)
        if self.pairs > 1 or verdict == "not shown":
            return verdict
        return f"{verdict},\nthis seed"


def differences(settings: Sequence[Setting]) -> list[Difference]:
    """Compares all settings but the first with the first.

    The intervals hold simultaneously (Bonferroni): each has the confidence 1 - 0.05 / n.
    """
    baseline, *others = settings
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(others))
    return [difference(baseline.runs, setting.runs, confidence) for setting in others]


def difference(
    baseline: Mapping[int, Run], setting: Mapping[int, Run], confidence: float = CONFIDENCE
) -> Difference:
    """Compares the error rates of two settings over the seeds of both.

    The interval includes two sources of chance: the choice of the test utterances (bootstrap over
    utterances, which count as independent, Bisani & Ney 2004) and, for two or more seeds, the
    training (Student's t over the seeds). Their sum is the Behrens-Fisher problem. For a loss only
    the second source is known.

    Args:
        baseline: runs by seed.
        setting: runs by seed, on the same utterances.
        confidence: confidence of the interval, 0 to 1.
    """
    # pairs with the same seed
    seeds = sorted(baseline.keys() & setting.keys())
    # (seeds, utterances) errors that the setting makes in addition
    extra_errors = np.array([setting[seed].errors - baseline[seed].errors for seed in seeds])
    if not seeds or not np.isfinite(extra_errors).all():
        return Difference(np.nan, np.nan, np.nan, len(seeds))
    higher_is_better = baseline[seeds[0]].higher_is_better
    # the mean; the uncertainty of a single number is unknown
    units = baseline[seeds[0]].units
    rate_by_seed = extra_errors.sum(1) / max(1, units.sum())
    mean = float(rate_by_seed.mean())
    if len(seeds) == 1 and len(units) == 1:
        return Difference(mean, np.nan, np.nan, len(seeds), higher_is_better)

    # 1. the choice of the test utterances
    rng = np.random.default_rng(0)
    samples = bootstrap_means(extra_errors.mean(0), units, rng)
    # 2. the training, as an independent error
    if len(seeds) > 1:
        samples += seed_noise(rate_by_seed, rng)
    # the interval
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, [tail, (1 + confidence) / 2])
    return Difference(mean, float(low), float(high), len(seeds), higher_is_better)


def bootstrap_means(errors: np.ndarray, units: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns error rates on test sets of equally many utterances, sampled with replacement.

    Args:
        errors: (utterances,) errors per utterance.
        units: (utterances,) words or characters per utterance.

    Returns:
        (RESAMPLES,) error rates.
    """
    rates = []
    for _ in range(CHUNKS):
        sampled = rng.integers(len(units), size=(RESAMPLES // CHUNKS, len(units)))
        rates.append(errors[sampled].sum(1) / np.maximum(1, units[sampled].sum(1)))
    return np.concatenate(rates)


def seed_noise(rate_by_seed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns errors of the mean over seeds: equally likely values of Student's t, shuffled.

    Args:
        rate_by_seed: (seeds,) rates of two seeds or more.

    Returns:
        (RESAMPLES,) errors.
    """
    n_seeds = len(rate_by_seed)
    quantiles = stdtrit(n_seeds - 1, (np.arange(RESAMPLES) + 0.5) / RESAMPLES)
    standard_error = rate_by_seed.std(ddof=1) * n_seeds**-0.5
    return standard_error * rng.permutation(quantiles)


def verdict_of(low: float, high: float, higher_is_better: bool = False) -> str:
    """Returns the verdict of the interval of a difference."""
    if low <= 0 <= high:
        return "not shown"
    return "better" if (low > 0) == higher_is_better else "worse"
