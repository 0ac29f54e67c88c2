"""Differences between settings and their confidence intervals."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from famx.analysis.runs import Run, Setting

CONFIDENCE = 0.95


RESAMPLES = 10_000


class Difference(NamedTuple):
    """How many more errors an arm makes than another, from pairs of runs under one seed, and the interval of that.

    `low` and `high` are NaN where nothing tells how far chance reaches: for a loss from one seed alone, for no pair,
    and where a run has diverged.
    """

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def verdict(self) -> str:
        """Fewer errors are better; what the interval does not tell from no difference is not shown."""
        if np.isnan(self.low):
            return "not known" if self.pairs else "no seed\nin common"
        found = verdict_of(self.low, self.high)
        return found if self.pairs > 1 or found == "not shown" else f"{found},\nthis seed"


def differences(arms: Sequence[Setting]) -> list[Difference]:
    """Of all arms but the first from the first; their intervals hold all at once (Bonferroni)."""
    base, *others = arms
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(others))
    return [difference(base.runs, other.runs, confidence) for other in others]


def difference(
    base: Mapping[int, Run], other: Mapping[int, Run], confidence: float = CONFIDENCE
) -> Difference:
    """Of the other arm's rate from the base's, over the seeds of both.

    Two chances are in it: which utterances are tested (bootstrap over them, Bisani & Ney 2004, each one counted as
    independent) and, from the second seed on, how training falls out (Student's t over the seeds; together as Behrens
    and Fisher have it). Of a loss it knows the second alone.

    Args:
        base, other: runs by their seeds.
    """
    seeds = sorted(base.keys() & other.keys())
    more = np.array([other[seed].errors - base[seed].errors for seed in seeds])
    if not np.isfinite(more).all() or not seeds:
        return Difference(np.nan, np.nan, np.nan, len(seeds))
    units, rng = base[seeds[0]].units, np.random.default_rng(0)
    rates = more.sum(1) / max(1, units.sum())
    drawn = (
        rng.integers(len(units), size=(RESAMPLES // 10, len(units))) for _ in range(10)
    )  # all at once are large
    chances = np.concatenate(
        [more.mean(0)[i].sum(1) / np.maximum(1, units[i].sum(1)) for i in drawn]
    )
    if len(seeds) > 1:
        evenly = stdtrit(len(seeds) - 1, (np.arange(RESAMPLES) + 0.5) / RESAMPLES)
        chances += rates.std(ddof=1) * len(seeds) ** -0.5 * rng.permutation(evenly)
    known = len(seeds) > 1 or len(units) > 1
    low, high = (
        np.quantile(chances, [(1 - confidence) / 2, (1 + confidence) / 2])
        if known
        else (np.nan, np.nan)
    )
    return Difference(float(rates.mean()), float(low), float(high), len(seeds))


def verdict_of(low: float, high: float) -> str:
    return "better" if high < 0 else "worse" if low > 0 else "not shown"
