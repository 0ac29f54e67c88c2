"""Momentum rules on gradients that are slow, fast, white or drifting in time."""

from functools import partial

import pytest
import torch

from famx.momentum.fam import Fam
from famx.momentum.fam_published import FamPublished
from famx.momentum.fsgdm import Fsgdm
from famx.momentum.innovation import Innovation
from famx.momentum.kalman import Kalman
from famx.momentum.random import Random
from famx.momentum.shuffled_fam import ShuffledFam
from famx.nn.hooks import set_observed
from famx.notation import TensorInfo
from famx.registry import build

SHAPE = (40, 30)
TENSORS = [
    TensorInfo(SHAPE, "other", 0.9, 8, "equal"),
    TensorInfo(SHAPE, "norm", 0.9, 4, "equal"),
    TensorInfo(SHAPE, "conv", 0.9, 10, "log"),
    TensorInfo(SHAPE, "attention", 0.92, 12, "split"),
    TensorInfo(SHAPE, "embedding", 0.95, 8, "equal"),
    TensorInfo(SHAPE, "other", 0.97, 8, "equal"),
]


def zero(t):
    return 0.0


def slow(t):
    return 2.0


def fast(t):
    return 2 * (-1.0) ** t


def fam_coefficients(signal, steps=300, tensors=TENSORS, **options):
    """Returns FAM's coefficients after steps of gradients `signal(t)` under white noise."""
    rule = Fam(tensors, **options)
    for t in range(1, steps):
        coefficients = rule([torch.randn(info.shape) + signal(t) for info in tensors], t)
    return coefficients


def base(tensors=TENSORS):
    return torch.tensor([info.base for info in tensors])


def coefficients_of(part, sources, steps=400, **options):
    """Returns a rule's coefficients after steps, one tensor for each iterator of gradients."""
    rule = part([TensorInfo(SHAPE, base=0.9) for _ in sources], **options)
    for t in range(1, steps):
        coefficients = rule([next(source) for source in sources], t)
    return coefficients.tolist()


def white_noise():
    while True:
        yield torch.randn(SHAPE)


def drifting(share):
    """Yields a random walk, whose steps are `share` of the white noise that is added to it."""
    level = torch.zeros(SHAPE)
    while True:
        level = level + share * torch.randn(SHAPE)
        yield level + torch.randn(SHAPE)


def test_white_noise_leaves_the_base_momentum():
    tensors = TENSORS * 8
    assert torch.equal(fam_coefficients(zero, tensors=tensors), base(tensors))


def test_fast_gradients_raise_the_momentum():
    coefficients = fam_coefficients(fast, layer_boost=False).tolist()
    assert coefficients == pytest.approx([0.95, 0.95, 0.95, 0.98, 0.98, 0.97])


def test_slow_gradients_lower_the_momentum_of_attention_alone():
    coefficients = fam_coefficients(slow, layer_boost=False).tolist()
    assert coefficients == pytest.approx([0.9, 0.9, 0.9, 0.87, 0.95, 0.97])


def test_layer_boost_follows_the_loudest_band():
    coefficients = fam_coefficients(slow).tolist()
    assert coefficients == pytest.approx([0.855, 0.855, 0.855, 0.8265, 0.9025, 0.9215])
    assert fam_coefficients(fast).tolist() == pytest.approx([0.98] * 6)


def test_nothing_moves_before_the_start_step_or_in_small_tensors():
    assert torch.equal(fam_coefficients(slow, steps=101), base())
    assert torch.equal(fam_coefficients(slow, min_size=1200), base())


def test_threshold_accounts_for_chance_in_small_samples():
    spectrum = partial(build, "spectrum", {"name": "temporal", "coordinates": 2})
    options = {"spectrum": spectrum, "steps": 110}
    sources = [white_noise() for _ in range(40)]
    assert coefficients_of(Fam, sources, **options) == pytest.approx([0.9] * 40)
    without = coefficients_of(Fam, sources, sigmas=0.0, **options)
    assert len({round(coefficient, 3) for coefficient in without}) > 1


def test_rows_without_gradient_are_no_independent_samples():
    tensors = [TensorInfo((1000, 64), base=0.9)] * 12
    rule = Fam(tensors)
    coefficients = []
    for t in range(1, 300):
        gradients = [torch.zeros(1000, 64) for _ in tensors]
        for gradient in gradients:
            gradient[:20] = torch.randn(20, 64)
        coefficients.append(rule(gradients, t))
    assert torch.stack(coefficients).unique().tolist() == pytest.approx([0.9])


def test_white_noise_moves_every_tensor_as_published():
    rule = FamPublished(TENSORS)
    for t in range(1, 120):
        coefficients = rule([torch.randn(info.shape) for info in TENSORS], t)
    assert coefficients.tolist()[4] == pytest.approx(0.98)
    assert coefficients.tolist()[:3] == pytest.approx([0.95, 0.95, 0.95])


def test_metrics_are_those_of_an_observed_rule():
    tensors = [*TENSORS, TensorInfo((3,), "norm")]
    rule = Fam(tensors, start_step=40)
    gradients = [torch.randn(info.shape) + 1 for info in tensors]
    rule(gradients, 1)
    assert not rule.metrics
    set_observed(rule, True)
    for t in range(2, 60):
        rule(gradients, t)
    assert set(rule.metrics) == {"fired"}
    assert 0 < rule.metrics["fired"] <= 1
    set_observed(rule, False)
    metrics = rule.metrics
    rule(gradients, 60)
    assert rule.metrics is metrics


def test_decided_bands_are_those_of_the_history_of_each_measured_tensor():
    # the last tensor is too small to be measured
    rule = Fam([*TENSORS, TensorInfo((3,), "norm")], start_step=40)
    gradients = [torch.randn(info.shape) + 1 for info in rule.tensors]
    rule(gradients, 1)
    assert rule.decided_bands().isnan().all()
    for t in range(2, 60):
        rule(gradients, t)
    bands = rule.decided_bands()
    assert bands.shape == (6, 12)
    for row, names in zip(bands, rule.band_names(), strict=True):
        assert row[: len(names)].isfinite().all()
        assert row[len(names) :].isnan().all()
        # gradients that do not change are in the slowest band
        assert row[0] == row[: len(names)].max() > 2


def test_kalman_gain_is_that_of_a_random_walk_under_noise():
    shares = (0.2, 0.5, 1.5)
    sources = [drifting(share) for share in shares for _ in range(8)]
    coefficients = torch.tensor(coefficients_of(Kalman, sources, low=0.0)).view(3, 8)
    for row, share in zip(coefficients, shares, strict=True):
        q = share**2
        gain = ((q**2 + 4 * q) ** 0.5 - q) / 2
        assert row.mean().item() == pytest.approx(1 - gain, abs=0.05)
    without_drift = coefficients_of(Kalman, [drifting(0.0) for _ in range(8)])
    assert sum(without_drift) / 8 > coefficients[0].mean()


def test_innovations_lower_the_momentum_of_drift_and_not_of_noise():
    sources = [drifting(0.1), drifting(1.0), drifting(0.0)]
    slow_drift, fast_drift, noise = coefficients_of(Innovation, sources)
    assert fast_drift < slow_drift < 0.9
    assert noise == pytest.approx(0.9)


def test_shuffled_fam_permutes_the_changes_of_fam():
    tensors = [TENSORS[0]] * 6
    fam = Fam(tensors, layer_boost=False)
    placebo = ShuffledFam(tensors, layer_boost=False)
    for t in range(1, 200):
        gradients = [torch.randn(SHAPE) for _ in tensors]
        for gradient in gradients[:2]:
            gradient += fast(t)
        coefficients = fam(gradients, t)
        permuted = placebo(gradients, t)
    assert sorted(coefficients.tolist()) == sorted(permuted.tolist())
    assert not torch.equal(coefficients, permuted)
    assert (placebo.source != torch.arange(6)).all()


def test_controls_do_not_depend_on_gradients():
    gradients = [torch.zeros(info.shape) for info in TENSORS]
    assert Fsgdm(TENSORS, mu=30.0)(gradients, 10).tolist() == pytest.approx([0.25] * 6)
    rule = Random(TENSORS, low=0.8, high=0.9, every=4)
    by_step = [rule(gradients, step) for step in range(40)]
    for coefficients in by_step:
        assert ((coefficients >= 0.8) & (coefficients <= 0.9)).all()
    assert torch.equal(by_step[4], by_step[7])
    assert not torch.equal(by_step[4], by_step[8])
    assert by_step[0].unique().numel() == 6


def test_invalid_options_are_refused():
    with pytest.raises(ValueError, match=r"beta=1.0 is not in \[0, 1\)"):
        Fam(TENSORS, beta=1.0)
    with pytest.raises(ValueError, match="n_bands=40 is more than the 17 bins"):
        Fam([TensorInfo(SHAPE, n_bands=40)])
    with pytest.raises(ValueError, match="every=0 must be at least 1"):
        Random(TENSORS, every=0)
