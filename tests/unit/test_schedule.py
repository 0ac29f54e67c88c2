"""Schedules at points of their formulas."""

import pytest

from famx.schedule import WSD, Linear, WarmupCosine, WarmupPlateauCosine


def multiples(schedule, steps):
    return [schedule(step) for step in steps]


def test_warmup_cosine_equals_its_formula():
    schedule = WarmupCosine(100, 20, 0.2, 0.1)
    expected = [0.2, 0.6, 1.0, 0.55, 0.1, 0.1]
    assert multiples(schedule, (0, 10, 20, 60, 100, 900)) == pytest.approx(expected)


def test_the_first_step_has_its_share_of_the_warmup():
    schedule = WarmupCosine(100, 4)
    assert multiples(schedule, range(5)) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert WarmupCosine(100, 4, start=0.0)(0) == 0.0
    assert WarmupCosine(3)(0) == 1.0


def test_plateau_lasts_until_the_decay_starts():
    schedule = WarmupPlateauCosine(100, 20, 0.2, 0.1, decay_start=80)
    expected = [0.6, 1.0, 1.0, 1.0, 0.55, 0.1]
    assert multiples(schedule, (10, 20, 79, 80, 90, 100)) == pytest.approx(expected)


def test_plateau_ends_half_way_by_default():
    schedule = WarmupPlateauCosine(100, 20)
    assert schedule(60) == 1.0
    assert schedule(61) < 1.0


def test_linear_equals_its_formula():
    schedule = Linear(100, 20, 0.2, 0.1)
    expected = [0.2, 0.6, 1.0, 0.55, 0.1, 0.1]
    assert multiples(schedule, (0, 10, 20, 60, 100, 900)) == pytest.approx(expected)


def test_wsd_equals_its_formula():
    schedule = WSD(100, 20, 0.2, 0.1, decay_start=80)
    expected = [0.6, 1.0, 1.0, 0.55, 0.1, 0.1]
    assert multiples(schedule, (10, 20, 80, 90, 100, 900)) == pytest.approx(expected)
    assert multiples(WSD(100), (90, 95, 100)) == pytest.approx([1.0, 0.5, 0.0])


def test_invalid_bounds_are_refused():
    with pytest.raises(ValueError, match="warmup_steps=-1 must be at least 0"):
        WarmupCosine(100, -1)
    with pytest.raises(ValueError, match="decay_start=-1 must be at least 0"):
        WSD(100, decay_start=-1)
    with pytest.raises(ValueError, match=r"end=2.0 must be between 0 and 1"):
        WarmupCosine(100, 10, end=2.0)
