"""The microscope sees what is there, under any optimizer, and changes nothing."""

import pytest
import torch
from pyarrow import parquet
from torch import nn

from famx.experiment.build import build_optimizer
from famx.monitoring.optimizer_probe import WINDOW, OptimizerProbe, correlations, effective_momentum
from famx.monitoring.spectrum_log import SpectrumLog
from famx.optim import parameter_groups
from famx.registry import names


def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(20, 24), nn.Linear(24, 40), nn.LayerNorm(40), nn.Linear(40, 3)
    )


def walk(optim, watch, steps=2 * WINDOW, every=WINDOW, gradient=None, **settings):
    """Trains a small model on noise, or on `gradient(t, tensor)`; its weights, the microscope, every report."""
    net = model()
    optimizer = build_optimizer({"name": optim, "lr": 1e-3, **settings}, parameter_groups(net))
    params = [p for group in optimizer.param_groups for p in group["params"]]
    microscope = OptimizerProbe(net, optimizer, watch, every) if watch != "off" else None
    generator = torch.Generator().manual_seed(1)
    reports = {}
    for step in range(1, steps + 1):
        for p in params:
            p.grad = (
                torch.randn(p.shape, generator=generator) if gradient is None else gradient(step, p)
            )
        optimizer.observed = step % every == 0
        if microscope is None:
            optimizer.step()
            continue
        with microscope.around(step, torch.stack(torch._foreach_norm([p.grad for p in params]))):
            optimizer.step()
        if microscope.metrics:
            reports[step] = microscope.metrics
    return [p.detach() for p in params], microscope, reports


@pytest.mark.parametrize("optim", names("optim"))
def test_watching_changes_no_weight_and_shows_the_same_of_every_optimizer(optim):
    bare, _, _ = walk(optim, "off")
    for watch in ("light", "full"):
        weights, microscope, reports = walk(optim, watch)
        assert all(map(torch.equal, bare, weights))
        assert list(reports) == [WINDOW, 2 * WINDOW]
        lags = {f"lag{k}" for k in range(1, 5)}
        shown = {
            "bands",
            "whiteness",
            "coefficient",
            "momentum",
            "update_to_weight",
            "cosine",
            "angle",
        }
        assert set(reports[WINDOW]) == lags | shown | {"gradient_norm"}
        assert all(len(values) == len(microscope.names) == 7 for values in reports[WINDOW].values())


@pytest.mark.parametrize(
    ("optim", "settings", "momentum"),
    [
        ("adamw", {"betas": (0.8, 0.98)}, 0.8),
        ("sgd", {"alpha": 0.7}, 0.7),
        ("ema_sgd", {}, None),
        ("fam", {}, None),
    ],
)
def test_the_momentum_that_takes_effect_is_the_one_that_is_set(optim, settings, momentum):
    _, _, reports = walk(optim, "light", **settings)
    seen = reports[2 * WINDOW]
    assert torch.allclose(seen["momentum"], seen["coefficient"], atol=2e-3)
    assert momentum is None or torch.allclose(seen["coefficient"], torch.tensor(momentum))


def test_an_optimizer_without_average_has_no_momentum():
    _, _, reports = walk("sgd", "light", alpha=0.0)
    seen = reports[2 * WINDOW]
    assert seen["momentum"].abs().max() < 0.01 and seen["cosine"].isnan().all()


def test_the_sketch_estimates_what_whole_tensors_show():
    _, _, light = walk("sgd", "light")
    weights, microscope, full = walk("sgd", "full")
    large = [i for i, p in enumerate(weights) if p.numel() > 400]
    for metric in ("update_to_weight", "angle", "cosine"):
        assert torch.allclose(
            light[WINDOW][metric][large], full[WINDOW][metric][large], rtol=0.5, atol=0.15
        ), metric
    assert large and len(microscope.names) > len(large)


def test_whole_tensors_are_compared_as_by_hand():
    net = nn.Linear(6, 5, bias=False)
    optimizer = build_optimizer({"name": "sgd", "lr": 0.1}, parameter_groups(net))
    microscope = OptimizerProbe(net, optimizer, "full", WINDOW)
    for step in range(1, WINDOW + 1):
        net.weight.grad = torch.randn(5, 6)
        before = net.weight.detach().clone().double()
        with microscope.around(step, net.weight.grad.norm()[None]):
            optimizer.step()
    after, seen = net.weight.detach().double(), microscope.metrics
    average, gradient = (
        optimizer.state[net.weight]["momentum_buffer"].double(),
        net.weight.grad.double(),
    )

    def cosine(a, b):
        return (a * b).sum() / a.norm() / b.norm()

    wanted = {
        "update_to_weight": (after - before).norm() / before.norm(),
        "angle": torch.arccos(cosine(after, before)),
        "cosine": cosine(average, gradient),
        "gradient_norm": gradient.norm(),
    }
    for metric, value in wanted.items():
        assert seen[metric].item() == pytest.approx(value.item(), rel=1e-4), metric


def test_white_noise_is_white_and_the_test_rejects_it_at_its_level():
    generator = torch.Generator().manual_seed(2)
    alone = torch.randn(WINDOW, 2000, 16, generator=generator)
    mixed = alone @ torch.randn(16, 16, generator=generator)  # coordinates that move together
    for series in (alone, mixed):
        lags, whiteness = correlations(series)
        assert (whiteness < 0.05).float().mean() == pytest.approx(0.05, abs=0.025)
        assert lags.mean(1).abs().max() < 0.01
    _, _, reports = walk("adamw", "light", steps=8 * WINDOW)
    bands = torch.stack([seen["bands"] for seen in reports.values()]).mean(0)
    large = bands[bands[:, 0] > 0]
    assert large.mean(0).sub(1).abs().max() < 0.1


@pytest.mark.parametrize("memory", [0.6, -0.5])
def test_a_signal_with_memory_shows_it_at_lag_one(memory):
    def gradient(t, p, state={}):  # noqa: B006
        if t == 1:
            state[p] = torch.zeros_like(p)
        state[p] = memory * state[p] + torch.randn(p.shape)
        return state[p].clone()

    _, _, reports = walk("adamw", "light", steps=8 * WINDOW, gradient=gradient)
    lags = torch.stack(
        [torch.stack([seen[f"lag{k}"] for k in (1, 2)]) for seen in reports.values()]
    ).mean(0)
    # the sum of a window has L - k products of L squares
    wanted = [memory * (1 - 1 / WINDOW), memory**2 * (1 - 2 / WINDOW)]
    assert torch.allclose(lags, torch.tensor(wanted)[:, None], atol=0.08)
    assert (
        torch.stack([seen["whiteness"] for seen in reports.values()]).median(0).values.max() < 0.05
    )
    slow, fast = (
        reports[WINDOW]["bands"][:, part].mean() for part in (slice(0, 2), slice(-2, None))
    )
    assert (slow > 1.5 and fast < 0.7) if memory > 0 else (slow < 0.8 and fast > 1.4)


def test_momentum_is_read_off_any_average():
    gradients = torch.randn(WINDOW, 3, 20)
    memory, m = [], torch.zeros(3, 20)
    for g in gradients:
        m = torch.tensor([0.5, 0.9, 0.0])[:, None] * m + 7 * g
        memory.append(m)
    assert torch.allclose(
        effective_momentum(torch.stack(memory), gradients), torch.tensor([0.5, 0.9, 0.0]), atol=1e-4
    )


def test_a_microscope_goes_on_from_its_state():
    _, whole, reports = walk("sgd", "light", steps=40, every=10)
    _, stopped, _ = walk("sgd", "light", steps=35, every=10)
    _, other, _ = walk("sgd", "light", steps=1, every=10)
    other.load_state_dict(stopped.state_dict())
    assert (other.filled, other.last) == (35, 35)
    assert list(reports) == [40] and whole.filled == 40
    for step in range(36, 41):  # the same steps as of the whole walk, seen from beside
        for microscope in (stopped, other):
            with microscope.around(step, torch.ones(len(microscope.params))):
                pass
    assert torch.equal(other.memory[:-5], whole.memory[:-5])
    assert torch.equal(other.spectrum.ring[:-5], whole.spectrum.ring[:-5])


def test_a_tensor_without_gradient_is_in_no_curve(tmp_path):
    record = SpectrumLog(tmp_path, ["one", "two"], ["other", "other"])
    curves = record.add(
        32,
        {
            "bands": torch.tensor([[1.0] * 8, [0.0] * 8]),
            "whiteness": torch.tensor([0.5, torch.nan]),
        },
    )
    assert curves == {"slow/other": 1, "fast/other": 1, "white/other": 1}


def test_a_record_is_cut_back_and_read_by_name(tmp_path):
    _, microscope, reports = walk("adamw", "light", steps=3 * WINDOW)
    record = SpectrumLog(tmp_path, microscope.names, microscope.kinds)
    for step, seen in reports.items():
        curves = record.add(step, seen)
    assert {"slow/norm", "white/other", "momentum/embedding", "lag1/norm"} <= set(curves)
    record.write()
    again = SpectrumLog(tmp_path, microscope.names, microscope.kinds, step=2 * WINDOW)
    assert list(again.reports) == [WINDOW, 2 * WINDOW]
    assert all(
        torch.equal(again.reports[WINDOW][metric], values)
        for metric, values in reports[WINDOW].items()
    )
    again.write()
    table = parquet.read_table(tmp_path / "spectrum.parquet").to_pylist()
    assert len(table) == 2 * 7 and {row["tensor"] for row in table} == {
        name for name, _ in model().named_parameters()
    }
    (row,) = [row for row in table if row["tensor"] == "1.weight" and row["step"] == WINDOW]
    assert row["kind"] == "other"
    i = microscope.names.index("1.weight")
    assert row["lag2"] == pytest.approx(reports[WINDOW]["lag2"][i].item())
    assert row["bands"] == pytest.approx(reports[WINDOW]["bands"][i].tolist())
    (tmp_path / "spectrum.parquet").write_bytes(
        (tmp_path / "spectrum.parquet").read_bytes()[:-20] + b"\0" * 20
    )
    assert not SpectrumLog(tmp_path, microscope.names, microscope.kinds, step=WINDOW).reports
    picture = record.pictures()["microscope/lag1"]
    assert picture.values.shape == (7, 3) and picture.rows == tuple(microscope.names)
    assert picture.columns == f"steps {WINDOW} to {3 * WINDOW}"
