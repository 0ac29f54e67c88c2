import pytest

from famx.contracts import applicable, contracts
from famx.registry import get, names
from famx.schedule import WSD, Linear, WarmupCosine, WarmupPlateauCosine


@pytest.mark.parametrize("law", contracts("schedule"))
@pytest.mark.parametrize("name", names("schedule"))
def test_keeps_the_laws(name, law):
    part = get("schedule", name)
    if law in applicable("schedule", part):
        contracts("schedule")[law](part)


def test_warmup_cosine_goes_through_the_points_of_its_formula():
    schedule = WarmupCosine(100, 20, 0.2, 0.1)
    assert [schedule(step) for step in (0, 10, 20, 60, 100, 900)] == pytest.approx(
        [0.2, 0.6, 1.0, 0.55, 0.1, 0.1]
    )


def test_the_plateau_lasts_until_the_decay_starts():
    schedule = WarmupPlateauCosine(100, 20, 0.2, 0.1, decay_start=80)
    assert [schedule(step) for step in (10, 20, 79, 80, 90, 100)] == pytest.approx(
        [0.6, 1.0, 1.0, 1.0, 0.55, 0.1]
    )


def test_linear_and_wsd_go_through_the_points_of_their_formulas():
    linear, wsd = Linear(100, 20, 0.2, 0.1), WSD(100, 20, 0.2, 0.1, decay_start=80)
    assert [linear(step) for step in (0, 10, 20, 60, 100, 900)] == pytest.approx(
        [0.2, 0.6, 1.0, 0.55, 0.1, 0.1]
    )
    assert [wsd(step) for step in (10, 20, 80, 90, 100, 900)] == pytest.approx(
        [0.6, 1.0, 1.0, 0.55, 0.1, 0.1]
    )
    assert [WSD(100)(step) for step in (90, 95, 100)] == pytest.approx([1.0, 0.5, 0.0])


def test_bad_bounds_are_refused():
    with pytest.raises(ValueError, match="warmup_steps=-1 must be at least 0"):
        WarmupCosine(100, -1)
    with pytest.raises(ValueError, match=r"end=2.0 is outside 0 to 1"):
        WarmupCosine(100, 10, end=2.0)
