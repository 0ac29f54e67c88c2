"""The optimizer probe measures what any optimizer does, and changes nothing."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from famx.experiment.build import build_optimizer
from famx.monitoring.optimizer_probe import WINDOW, OptimizerProbe, correlations, effective_momentum
from famx.nn.hooks import UsesMomentumRule
from famx.optim import parameter_groups
from famx.registry import names

LAGS = {"lag1", "lag2", "lag3", "lag4"}
METRICS = {
    *("bands", "whiteness", "coefficient", "momentum"),
    *("update_to_weight", "cosine", "angle", "gradient_norm"),
}


class Trained(NamedTuple):
    """A small model after some steps, its probe, and the metrics of every report by step."""

    weights: list[Tensor]
    probe: OptimizerProbe | None
    reports: dict[int, dict[str, Tensor]]


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(20, 24), nn.Linear(24, 40), nn.LayerNorm(40), nn.Linear(40, 3)
    )


def gradient_norms(params: list[nn.Parameter]) -> Tensor:
    return torch.stack(torch._foreach_norm([p.grad for p in params]))


def train(
    optim: str,
    level: str,
    steps: int = 2 * WINDOW,
    every: int = WINDOW,
    gradient: Callable[[int, Tensor], Tensor] | None = None,
    **settings: object,
) -> Trained:
    """Trains a small model on noise, or on `gradient(step, tensor)`."""
    net = small_model()
    optimizer = build_optimizer({"name": optim, "lr": 1e-3, **settings}, parameter_groups(net))
    params = [p for group in optimizer.param_groups for p in group["params"]]
    probe = None
    if level != "off":
        probe = OptimizerProbe(net, optimizer, level, every)
    generator = torch.Generator().manual_seed(1)
    reports = {}
    for step in range(1, steps + 1):
        for p in params:
            noise = torch.randn(p.shape, generator=generator)
            p.grad = noise if gradient is None else gradient(step, p)
        optimizer.observed = step % every == 0
        if probe:
            probe.before_step(step, gradient_norms(params))
        optimizer.step()
        if probe:
            probe.after_step()
            if probe.metrics:
                reports[step] = probe.metrics
    return Trained([p.detach() for p in params], probe, reports)


@pytest.mark.parametrize("optim", names("optim"))
def test_the_probe_changes_no_weight_and_reports_the_same_metrics_of_every_optimizer(optim):
    expected = train(optim, "off").weights
    for level in ("light", "full"):
        weights, probe, reports = train(optim, level)
        assert all(map(torch.equal, expected, weights))
        assert list(reports) == [WINDOW, 2 * WINDOW]
        of_rule = {"base", "fired", "rule_bands"} & set(reports[WINDOW])
        assert set(reports[WINDOW]) == LAGS | METRICS | of_rule
        assert ("fired" in of_rule) == isinstance(probe.optimizer, UsesMomentumRule)
        n_tensors = len(probe.names)
        assert n_tensors == 7
        assert all(len(values) == n_tensors for values in reports[WINDOW].values())


@pytest.mark.parametrize(
    ("optim", "settings", "momentum"),
    [
        ("adamw", {"betas": (0.8, 0.98)}, 0.8),
        ("sgd", {"alpha": 0.7}, 0.7),
        ("ema_sgd", {}, None),
        ("fam", {}, None),
    ],
)
def test_effective_momentum_is_the_one_that_is_set(optim, settings, momentum):
    metrics = train(optim, "light", **settings).reports[2 * WINDOW]
    assert torch.allclose(metrics["momentum"], metrics["coefficient"], atol=2e-3)
    assert momentum is None or torch.allclose(metrics["coefficient"], torch.tensor(momentum))


def test_an_optimizer_without_an_average_has_no_momentum():
    metrics = train("sgd", "light", alpha=0.0).reports[2 * WINDOW]
    assert metrics["momentum"].abs().max() < 0.01
    assert metrics["cosine"].isnan().all()


def test_sketches_estimate_what_full_tensors_show():
    light = train("sgd", "light").reports[WINDOW]
    weights, probe, reports = train("sgd", "full")
    full = reports[WINDOW]
    large = [i for i, p in enumerate(weights) if p.numel() > 400]
    assert 0 < len(large) < len(probe.names)
    for metric in ("update_to_weight", "angle", "cosine"):
        estimate = light[metric][large]
        assert torch.allclose(estimate, full[metric][large], rtol=0.5, atol=0.15), metric


def test_full_tensors_are_compared_as_by_hand():
    net = nn.Linear(6, 5, bias=False)
    optimizer = build_optimizer({"name": "sgd", "lr": 0.1}, parameter_groups(net))
    probe = OptimizerProbe(net, optimizer, "full", WINDOW)
    for step in range(1, WINDOW + 1):
        net.weight.grad = torch.randn(5, 6)
        before = net.weight.detach().clone().double()
        probe.before_step(step, net.weight.grad.norm()[None])
        optimizer.step()
        probe.after_step()
    after = net.weight.detach().double()
    average = optimizer.state[net.weight]["momentum_buffer"].double()
    gradient = net.weight.grad.double()

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum() / a.norm() / b.norm()

    expected = {
        "update_to_weight": (after - before).norm() / before.norm(),
        "angle": torch.arccos(cosine(after, before)),
        "cosine": cosine(average, gradient),
        "gradient_norm": gradient.norm(),
    }
    for metric, value in expected.items():
        assert probe.metrics[metric].item() == pytest.approx(value.item(), rel=1e-4), metric


def test_metrics_are_cleared_by_the_next_step():
    probe = train("sgd", "light").probe
    assert probe.metrics
    probe.before_step(2 * WINDOW + 1, torch.ones(7))
    assert probe.metrics == {}


def test_white_noise_is_rejected_as_often_as_the_level_says():
    generator = torch.Generator().manual_seed(2)
    independent = torch.randn(WINDOW, 2000, 16, generator=generator)
    correlated = independent @ torch.randn(16, 16, generator=generator)  # between coordinates
    for series in (independent, correlated):
        lags, whiteness = correlations(series)
        assert (whiteness < 0.05).float().mean() == pytest.approx(0.05, abs=0.025)
        assert lags.mean(1).abs().max() < 0.01


def test_bands_of_white_noise_are_one():
    reports = train("adamw", "light", steps=8 * WINDOW).reports
    bands = torch.stack([metrics["bands"] for metrics in reports.values()]).mean(0)
    with_gradient = bands[bands[:, 0] > 0]
    assert with_gradient.mean(0).sub(1).abs().max() < 0.1


@pytest.mark.parametrize("decay", [0.6, -0.5])
def test_an_autoregressive_signal_has_its_lags_and_bands(decay):
    state: dict[Tensor, Tensor] = {}

    def gradient(step: int, p: Tensor) -> Tensor:
        previous = state.get(p, torch.zeros_like(p))
        state[p] = decay * previous + torch.randn(p.shape)
        return state[p].clone()

    reports = train("adamw", "light", steps=8 * WINDOW, gradient=gradient).reports
    lags = []
    for k in (1, 2):
        lags.append(torch.stack([metrics[f"lag{k}"] for metrics in reports.values()]).mean(0))
    # the sum over a window has L - k products of L squares
    expected = [decay * (1 - 1 / WINDOW), decay**2 * (1 - 2 / WINDOW)]
    assert torch.allclose(torch.stack(lags), torch.tensor(expected)[:, None], atol=0.08)
    whiteness = torch.stack([metrics["whiteness"] for metrics in reports.values()])
    assert whiteness.median(0).values.max() < 0.05
    bands = reports[WINDOW]["bands"]
    slow = bands[:, :2].mean()
    fast = bands[:, -2:].mean()
    if decay > 0:
        assert slow > 1.5
        assert fast < 0.7
    else:
        assert slow < 0.8
        assert fast > 1.4


def test_effective_momentum_is_that_of_any_average():
    gradients = torch.randn(WINDOW, 3, 20)
    momentum = torch.tensor([0.5, 0.9, 0.0])
    average = torch.zeros(3, 20)
    averages = []
    for g in gradients:
        average = momentum[:, None] * average + 7 * g
        averages.append(average)
    assert torch.allclose(effective_momentum(torch.stack(averages), gradients), momentum, atol=1e-4)


def test_a_probe_continues_from_its_state():
    uninterrupted = train("sgd", "light", steps=40, every=10)
    assert list(uninterrupted.reports) == [40]
    assert uninterrupted.probe.n_steps == 40
    interrupted = train("sgd", "light", steps=35, every=10).probe
    restored = train("sgd", "light", steps=1, every=10).probe
    restored.load_state_dict(interrupted.state_dict())
    assert restored.n_steps == restored.last_step == 35
    # five more steps, the optimizers of which are omitted
    for step in range(36, 41):
        for probe in (interrupted, restored):
            probe.before_step(step, torch.ones(len(probe.params)))
            probe.after_step()
    expected = uninterrupted.probe
    assert torch.equal(restored.averages[:-5], expected.averages[:-5])
    assert torch.equal(restored.spectrum.ring[:-5], expected.spectrum.ring[:-5])
