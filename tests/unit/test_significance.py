"""Intervals of differences between settings cover the truth."""

from pathlib import Path

import numpy as np
import pytest

from famx.analysis import significance
from famx.analysis.runs import Run, Setting
from famx.analysis.significance import difference, differences


def runs_by_seed(errors: np.ndarray, units: int = 4) -> dict[int, Run]:
    """Returns a run for each row of (seeds, utterances) errors."""
    runs = {}
    for seed, of_seed in enumerate(errors):
        runs[seed] = Run(
            folder=Path("."),
            settings={},
            seed=seed,
            steps=1,
            parameters=1,
            metric="wer",
            test="test",
            errors=of_seed,
            units=np.full(len(of_seed), units),
        )
    return runs


def test_a_setting_does_not_differ_from_itself():
    runs = runs_by_seed(np.random.default_rng(1).integers(0, 4, size=(3, 60)))
    assert difference(runs, runs)[:3] == (0, 0, 0)
    assert difference(runs, runs).verdict == "not shown"


def test_difference_is_antisymmetric():
    rng = np.random.default_rng(1)
    first = runs_by_seed(rng.integers(0, 4, size=(3, 60)))
    second = runs_by_seed(rng.integers(0, 4, size=(3, 60)))
    forward = difference(first, second)
    backward = difference(second, first)
    assert forward.mean == -backward.mean
    assert [forward.low, forward.high] == pytest.approx([-backward.high, -backward.low], rel=0.2)


@pytest.mark.parametrize("n_seeds", [1, 2, 4])
def test_intervals_cover_the_truth_as_often_as_they_say(n_seeds, monkeypatch):
    monkeypatch.setattr(significance, "RESAMPLES", 1000)
    rng = np.random.default_rng(2)
    truth = 0.3
    covered = []
    for _ in range(200):
        difficulty = rng.gamma(2.0, size=60)  # of each utterance, for both settings
        luck = 0.2 * (n_seeds > 1) * rng.standard_normal((2, n_seeds, 1))  # of each training
        errors = rng.poisson(difficulty, size=(2, n_seeds, 60)) + luck
        errors[1] += truth
        result = difference(runs_by_seed(errors[0], 1), runs_by_seed(errors[1], 1))
        covered.append(result.low <= truth <= result.high)
    assert 0.91 <= np.mean(covered) <= 1


def test_pairing_removes_shared_difficulty():
    rng = np.random.default_rng(3)
    difficulty = rng.integers(0, 40, size=200)
    first = runs_by_seed(difficulty[None])
    second = runs_by_seed(difficulty[None] + rng.integers(0, 2, size=200))
    result = difference(first, second)
    assert 0 < result.low < result.mean < result.high
    assert result.mean == pytest.approx(second[0].rate - first[0].rate)
    assert result.high - result.low < 0.1 * difficulty.std()


@pytest.mark.parametrize("n_comparisons", [1, 7, 30])
def test_the_interval_of_a_loss_is_that_of_students_t(n_comparisons):
    """Quantiles of t with two degrees of freedom are (2 p - 1) sqrt(2 / (4 p (1 - p)))."""
    losses = np.array([[0.1], [0.4], [0.7]])
    baseline = runs_by_seed(0 * losses, 1)
    result = difference(baseline, runs_by_seed(losses, 1), 1 - 0.05 / n_comparisons)
    p = 1 - 0.025 / n_comparisons
    quantile = (2 * p - 1) * (2 / (4 * p * (1 - p))) ** 0.5
    reach = quantile * losses.std(ddof=1) / 3**0.5
    assert [result.low, result.high] == pytest.approx([0.4 - reach, 0.4 + reach], rel=0.1)


def test_the_verdict_of_one_seed_is_labelled():
    baseline = runs_by_seed(np.full((1, 60), 1))
    worse = runs_by_seed(np.full((1, 60), 3))
    assert difference(baseline, worse).verdict == "worse,\nthis seed"
    assert difference(worse, baseline).verdict == "better,\nthis seed"
    assert difference(baseline, baseline).verdict == "not shown"


def test_a_loss_of_one_seed_has_no_interval():
    result = difference(runs_by_seed(np.array([[1.0]]), 1), runs_by_seed(np.array([[2.0]]), 1))
    assert result.mean == 1
    assert np.isnan([result.low, result.high]).all()
    assert result.verdict == "not known"


def test_a_diverged_run_has_no_difference():
    baseline = runs_by_seed(np.ones((2, 5)))
    diverged = runs_by_seed(np.array([[1.0] * 5, [np.nan] * 5]))
    result = difference(baseline, diverged)
    assert np.isnan(result[:3]).all()
    assert result.verdict == "not known"


def test_settings_without_a_common_seed_have_no_difference():
    runs = runs_by_seed(np.ones((2, 5)))
    result = difference({0: runs[0]}, {1: runs[1]})
    assert result.pairs == 0
    assert result.verdict == "no seed\nin common"


def test_intervals_of_more_comparisons_are_wider():
    rng = np.random.default_rng(4)
    settings = []
    for _ in range(5):
        settings.append(Setting("", runs_by_seed(rng.integers(0, 4, size=(1, 60)))))
    (alone, *_) = differences(settings[:2])
    (with_others, *_) = differences(settings)
    assert with_others.mean == alone.mean
    assert with_others.low < alone.low
    assert with_others.high > alone.high
