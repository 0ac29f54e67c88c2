"""Every optimizer equals a slow plain form of it, or torch's own, over 100 steps."""

from functools import partial

import pytest
import torch
from reference import (
    around,
    bandwise,
    fam,
    fam_adamw,
    fam_published,
    maxfactor,
    muon,
    simple_fam,
)
from reference.walk import KINDS, close, gradients, groups, tensors, walk

from famx.optim import (
    AGC,
    FAM,
    SGD,
    Adafactor,
    AdamW,
    EMANesterov,
    EmaSGD,
    FAMAdamW,
    FAMBandwise,
    FAMMaxFactor,
    FAMPublished,
    Lookahead,
    MaxFactor,
    Muon,
    NAdamW,
    SimpleFAM,
    _kernels,
    base,
)
from famx.optim import maxfactor as maxfactor_part
from famx.optim import muon as muon_part
from famx.optim.muon import orthogonalize
from famx.registry import build


def rule(name, **options):
    return partial(build, "momentum", {"name": name, **options})


def step_both(optimizer, params, other_optimizers, other_params, steps):
    """Takes the same steps with an optimizer over params and others over other_params."""
    for row in gradients(steps):
        for p, q, gradient in zip(params, other_params, row, strict=True):
            p.grad = gradient
            q.grad = gradient.clone()
        optimizer.step()
        for other_optimizer in other_optimizers:
            other_optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_fam_published_equals_its_plain_form(weight_decay):
    params = tensors()
    options = {"lr": 0.1, "weight_decay": weight_decay, "fam_start_step": 20}
    optimizer = FAMPublished(groups(params), **options)
    expected = tensors()
    draws = optimizer.rule.spectrum.draws
    reference = fam_published.PlainFAM(expected, KINDS, draws, **options)
    for _ in walk(optimizer, params, reference, 100):
        if optimizer.calls > 20:
            momenta = torch.tensor(reference.momenta)
            assert torch.allclose(optimizer.rule.coefficients, momenta)
    assert close(params, expected)


def test_simple_fam_equals_its_plain_form():
    params = tensors()
    expected = tensors()
    reference = simple_fam.PlainSimpleFAM(expected, lr=0.1)
    for _ in walk(SimpleFAM(params, lr=0.1), params, reference, 120):
        pass
    assert close(params, expected)


def test_fam_equals_its_plain_form():
    params = tensors()
    optimizer = FAM(groups(params), lr=0.1, fam_start_step=40)
    expected = tensors()
    reference = fam.PlainFAM(expected, KINDS, lr=0.1, fam_start_step=40)
    for _ in walk(optimizer, params, reference, 100):
        assert torch.allclose(optimizer.rule.coefficients, torch.tensor(reference.momenta))
    assert close(params, expected)
    assert optimizer.rule.coefficients.tolist() != [a for _, a, _ in KINDS], "no rule has fired"


@pytest.mark.parametrize(
    ("part", "original"),
    [
        (AdamW, partial(torch.optim.AdamW, lr=0.1, betas=(0.9, 0.98), foreach=False)),
        (SGD, partial(torch.optim.SGD, lr=0.1, momentum=0.9, foreach=False)),
        (
            NAdamW,
            partial(
                torch.optim.NAdam,
                lr=0.1,
                betas=(0.9, 0.98),
                weight_decay=0.01,
                decoupled_weight_decay=True,
            ),
        ),
        (Adafactor, partial(torch.optim.Adafactor, lr=0.1, foreach=False)),
    ],
)
def test_torchs_optimizers_equal_torchs(part, original):
    params = tensors()
    expected = tensors()
    step_both(part(params, lr=0.1), params, [original(expected)], expected, 100)
    assert close(params, expected)


def test_muon_equals_its_plain_form_for_matrices_and_adamw_for_all_else(monkeypatch):
    monkeypatch.setattr(muon_part, "_computes_in_bfloat16", lambda device: False)
    params = tensors()
    optimizer = Muon(groups(params), lr=0.01)
    expected = tensors()
    plain = muon.PlainMuon([expected[1], expected[4]], lr=0.01)
    # the third tensor is an embedding
    adamw = torch.optim.AdamW(
        [expected[0], expected[2], expected[3]], lr=0.01, betas=(0.9, 0.98), foreach=False
    )
    step_both(optimizer, params, [plain, adamw], expected, 20)
    assert close(params, expected)


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_of_many_matrices_equals_its_plain_form(monkeypatch, nesterov):
    monkeypatch.setattr(muon_part, "_computes_in_bfloat16", lambda device: False)
    # wide, tall and square ones, several of some shapes, and one of another dtype
    shapes = [(6, 20), (20, 6), (6, 20), (8, 8), (8, 8), (1, 5), (3, 0)]
    generator = torch.Generator().manual_seed(1)
    initial = [torch.randn(shape, generator=generator) for shape in shapes]
    initial.append(initial[0].double())
    params = [p.clone() for p in initial]
    expected = [p.clone() for p in initial]
    options = {"lr": 0.01, "weight_decay": 0.1, "nesterov": nesterov}
    optimizer = Muon(params, **options)
    plain = muon.PlainMuon(expected, **options)
    for step in range(10):
        for i, (p, q) in enumerate(zip(params, expected, strict=True)):
            # one of them has no gradient in every other step
            gradient = torch.randn(p.shape, generator=generator).to(p)
            p.grad = q.grad = None if i == 2 and step % 2 else gradient
        optimizer.step()
        plain.step()
    assert close(params, expected)
    assert not any(torch.equal(p, q) for p, q in zip(params, initial, strict=True) if p.numel())


def test_muon_equals_torchs_up_to_the_rounding_of_bfloat16():
    params = tensors()
    optimizer = Muon(groups(params), lr=0.01)
    expected = tensors()
    original = torch.optim.Muon(
        [expected[1], expected[4]], lr=0.01, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
    )
    step_both(optimizer, params, [original], expected, 20)
    for i in (1, 4):
        path = (expected[i] - tensors()[i]).norm()
        assert (params[i] - expected[i]).norm() < 0.01 * path


def test_muon_takes_a_momentum_rule():
    params = tensors()
    optimizer = Muon(groups(params), lr=0.01, momentum=rule("constant", beta=0.5))
    expected = tensors()
    other = Muon(groups(expected), lr=0.01, alpha=0.5, betas=(0.5, 0.98))
    step_both(optimizer, params, [other], expected, 3)
    assert all(map(torch.equal, params, expected))


def test_orthogonalize_brings_all_singular_values_near_one():
    generator = torch.Generator().manual_seed(2)
    matrices = torch.randn(3, 10, 40, generator=generator)
    values = torch.linalg.svdvals(orthogonalize(matrices, 5).float())
    assert values.min() > 0.6 and values.max() < 1.3
    # and keeps the singular vectors: the product with the original is symmetric and positive
    product = orthogonalize(matrices, 5).float() @ matrices.mT
    assert torch.allclose(product, product.mT, atol=0.03 * product.abs().max())
    assert (torch.linalg.eigvalsh(product) > 0).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": 0.3, "eps": (1e-5, 1e-2), "clip_threshold": 0.5, "gamma": 0.9, "beta2_decay": -0.5},
        {"full_matrix": True, "clip": 0.01},
        {"magnitude": "max", "weight_decay": 0.0},
        {"magnitude": "median"},
    ],
)
def test_maxfactor_equals_its_plain_form(options):
    params = tensors()
    expected = tensors()
    reference = maxfactor.PlainMaxFactor(expected, **options)
    for _ in walk(MaxFactor(params, **options), params, reference, 100):
        pass
    assert close(params, expected)


def test_maxfactor_on_gradients_averaged_by_fam_equals_its_plain_form():
    params = tensors()
    optimizer = FAMMaxFactor(groups(params), lr=0.01)
    optimizer.rule.start_step = 40

    def momentum_of(i):
        # plain MaxFactor before the rule starts
        return optimizer.rule.coefficients[i].item() if optimizer.calls > 40 else 0.0

    expected = tensors()
    averages = [partial(momentum_of, i) for i in range(len(params))]
    reference = maxfactor.PlainMaxFactor(expected, lr=0.01, averages=averages)
    for _ in walk(optimizer, params, reference, 100):
        pass
    assert close(params, expected)
    assert optimizer.rule.coefficients.tolist() != [a for _, a, _ in KINDS], "no rule has fired"


def test_tensors_that_fam_ignores_take_plain_maxfactor():
    param = torch.ones(20)
    expected = torch.ones(20)
    optimizer = FAMMaxFactor([param], lr=0.1)
    reference = maxfactor.PlainMaxFactor([expected])
    for i in range(20):
        gradient = torch.randn(20, generator=torch.Generator().manual_seed(i))
        param.grad = gradient
        optimizer.step()
        reference.step([gradient])
    assert close([param], [expected])


@pytest.mark.parametrize(
    "make",
    [
        FAMAdamW,
        partial(FAMAdamW, momentum=rule("random", every=3)),
        partial(FAMAdamW, momentum=rule("fam", start_step=40)),
        partial(FAMAdamW, momentum=rule("fsgdm")),
    ],
)
def test_adamw_with_a_momentum_rule_equals_its_plain_form(make):
    params = tensors()
    optimizer = make(groups(params), lr=0.01, weight_decay=0.1)
    optimizer.observed = True

    def momenta():
        return optimizer.metrics["momentum"].tolist()

    expected = tensors()
    reference = fam_adamw.PlainRuledAdamW(expected, momenta, lr=0.01, weight_decay=0.1)
    for _ in walk(optimizer, params, reference, 100):
        pass
    assert close(params, expected)


def test_fam_adamw_with_a_constant_momentum_is_adamw():
    params = tensors()
    optimizer = FAMAdamW(params, momentum=rule("constant", beta=0.8), lr=0.01)
    expected = tensors()
    adamw = torch.optim.AdamW(expected, lr=0.01, betas=(0.8, 0.98), foreach=False)
    step_both(optimizer, params, [adamw], expected, 50)
    assert close(params, expected)


@pytest.mark.parametrize(
    ("part", "plain_form", "options"),
    [
        (Lookahead, around.PlainLookahead, {"k": 4, "share": 0.3}),
        (AGC, around.PlainAGC, {"clip": 0.02}),
        (
            EMANesterov,
            around.PlainEMANesterov,
            {"start_step": 10, "stop_step": 90, "beta": 0.7, "gamma": 0.8},
        ),
    ],
)
def test_wrappers_equal_their_plain_forms(part, plain_form, options):
    params = tensors()
    optimizer = part(FAM(groups(params), lr=0.1, fam_start_step=40), **options)
    expected = tensors()
    plain_base = fam.PlainFAM(expected, KINDS, lr=0.1, fam_start_step=40)
    for _ in walk(optimizer, params, plain_form(expected, plain_base, **options), 100):
        pass
    assert close(params, expected)


def test_momentum_for_each_band_equals_its_plain_form():
    params = tensors()
    expected = tensors()
    reference = bandwise.PlainBandwise(expected, lr=0.1)
    for _ in walk(FAMBandwise(params, lr=0.1), params, reference, 100):
        pass
    assert close(params, expected)


class PerTensorEmaSGD(EmaSGD):
    _fused_step = EmaSGD._per_tensor_step


class PerTensorFAM(FAM):
    _fused_step = FAM._per_tensor_step


class PerTensorFAMAdamW(FAMAdamW):
    _fused_step = FAMAdamW._per_tensor_step


@pytest.mark.parametrize(
    ("fused", "per_tensor", "options"),
    [
        (FAMAdamW, PerTensorFAMAdamW, {"lr": 0.01}),
        (EmaSGD, PerTensorEmaSGD, {"lr": 0.1, "weight_decay": 0.1}),
        (EmaSGD, PerTensorEmaSGD, {"lr": 0.1, "weight_decay": 0.1, "debias": True}),
    ],
)
def test_per_tensor_step_equals_fused_step(fused, per_tensor, options):
    results = []
    for part in (fused, per_tensor):
        params = tensors()
        optimizer = part(params, momentum=rule("random"), **options)
        for row in gradients(40):
            for p, gradient in zip(params, row, strict=True):
                p.grad = gradient
            optimizer.step()
        results.append(params)
    assert close(*results)


@pytest.mark.parametrize(
    ("part", "on_device", "options"),
    [
        (FAM, PerTensorFAM, {"lr": 0.1, "weight_decay": 0.1, "fam_start_step": 20}),
        (FAM, PerTensorFAM, {"lr": 0.1, "debias": True, "fam_start_step": 20}),
        (FAMAdamW, PerTensorFAMAdamW, {"lr": 0.01, "weight_decay": 0.1}),
        (MaxFactor, MaxFactor, {"clip": 0.1}),
        (FAMBandwise, FAMBandwise, {"lr": 0.1}),
    ],
)
def test_a_step_with_numbers_on_the_device_is_the_same_step(part, on_device, options, monkeypatch):
    rows = list(gradients(60))
    rows[50] = [g + torch.nan for g in rows[50]]
    results = []
    for cls in (part, on_device):
        params = tensors()
        optimizer = cls(groups(params), **options)
        for row in rows:
            for p, gradient in zip(params, row, strict=True):
                p.grad = gradient
            optimizer.step()
        results.append(params)
        # the second time as where the device is not the host
        for module in (base, maxfactor_part):
            monkeypatch.setattr(module, "scalars", lambda values: list(values.unbind()))
    assert close(*results)


@pytest.mark.parametrize("found_inf", [0.0, 1.0])
def test_average_equals_its_plain_form(found_inf):
    weights = [0.1, torch.tensor(0.5), 0.1, 1.0, 0.3]
    for dtype in (torch.float32, torch.float64):
        *_, row = gradients(1)
        row = [g.to(dtype) for g in row]
        averages = [m.to(dtype) for m in tensors()]
        expected = [m.to(dtype) for m in tensors()]
        _kernels.average(averages, row, weights, torch.tensor(found_inf))
        _kernels.average_reference(expected, row, weights, torch.tensor(found_inf))
        assert close(averages, expected)
        assert close(averages, [m.to(dtype) for m in tensors()]) == bool(found_inf)


@pytest.mark.parametrize("found_inf", [0.0, 1.0])
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)])
def test_descend_equals_its_plain_form(found_inf, lr):
    *_, row = gradients(1)
    # every second column of a larger tensor, which is not contiguous
    params = [torch.stack([p, p], -1)[..., 0] for p in tensors()]
    expected = tensors()
    _kernels.descend(params, row, lr, 0.2, torch.tensor(found_inf))
    _kernels.descend_reference(expected, row, lr, 0.2, torch.tensor(found_inf))
    assert close(params, expected)
    assert close(params, tensors()) == bool(found_inf)
