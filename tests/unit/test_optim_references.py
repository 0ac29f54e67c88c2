"""Every rule equals a slow plain form of it, or torch's own, over 100 steps."""

from functools import partial

import pytest
import torch
from reference import around, bandwise, fam, fam_adamw, fam_published, maxfactor, simple_fam
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
    base,
)
from famx.optim import maxfactor as maxfactor_part
from famx.registry import build


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_fam_published_equals_its_plain_form(weight_decay):
    params, plain = tensors(), tensors()
    options = {"lr": 0.1, "weight_decay": weight_decay, "fam_start_step": 20}
    optimizer = FAMPublished(groups(params), **options)
    measured = optimizer.rule.spectrum
    reference = fam_published.PlainFAM(plain, KINDS, measured.draws, **options)
    for _ in walk(optimizer, params, reference, 100):
        assert (
            torch.allclose(optimizer.rule.coefficients, torch.tensor(reference.used))
            or optimizer.calls <= 20
        )
    assert close(params, plain)


def test_simple_fam_equals_its_plain_form():
    params, plain = tensors(), tensors()
    for _ in walk(SimpleFAM(params, lr=0.1), params, simple_fam.PlainSimpleFAM(plain, lr=0.1), 120):
        pass
    assert close(params, plain)


def test_fam_equals_its_plain_form():
    params, plain = tensors(), tensors()
    optimizer = FAM(groups(params), lr=0.1, fam_start_step=40)
    reference = fam.PlainFAM(plain, KINDS, lr=0.1, fam_start_step=40)
    for _ in walk(optimizer, params, reference, 100):
        assert torch.allclose(optimizer.rule.coefficients, torch.tensor(reference.used))
    assert close(params, plain)
    assert optimizer.rule.coefficients.tolist() != [a for _, a, _ in KINDS]


@pytest.mark.parametrize(
    ("part", "original"),
    [
        (AdamW, lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.9, 0.98), foreach=False)),
        (SGD, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=False)),
        (
            NAdamW,
            lambda p: torch.optim.NAdam(
                p, 0.1, (0.9, 0.98), weight_decay=0.01, decoupled_weight_decay=True
            ),
        ),
        (Adafactor, lambda p: torch.optim.Adafactor(p, lr=0.1, foreach=False)),
    ],
)
def test_wrapped_optimizers_equal_torchs(part, original):
    params, others = tensors(), tensors()
    optimizer, other = part(params, lr=0.1), original(others)
    for row in gradients(100):
        for p, q, gradient in zip(params, others, row, strict=True):
            p.grad, q.grad = gradient, gradient.clone()
        optimizer.step()
        other.step()
    assert close(params, others)


def test_muon_equals_torchs_for_matrices_and_adamw_for_the_rest():
    params, others = tensors(), tensors()
    optimizer = Muon(groups(params), lr=0.01)
    muon = torch.optim.Muon(
        [others[1], others[4]], lr=0.01, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(
        [others[0], others[2], others[3]], lr=0.01, betas=(0.9, 0.98), foreach=False
    )
    for row in gradients(20):
        for p, q, gradient in zip(params, others, row, strict=True):
            p.grad, q.grad = gradient, gradient.clone()
        optimizer.step()
        muon.step()
        adamw.step()
    assert close(params, others)


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
    params, plain = tensors(), tensors()
    for _ in walk(
        MaxFactor(params, **options), params, maxfactor.PlainMaxFactor(plain, **options), 100
    ):
        pass
    assert close(params, plain)


def test_maxfactor_on_gradients_that_fam_has_averaged_equals_its_plain_form():
    params, plain = tensors(), tensors()
    optimizer = FAMMaxFactor(groups(params), lr=0.01)
    optimizer.rule.start_step = 40
    averages = [
        partial(lambda i: optimizer.rule.coefficients[i].item(), i) for i in range(len(params))
    ]
    for _ in walk(
        optimizer, params, maxfactor.PlainMaxFactor(plain, lr=0.01, averages=averages), 100
    ):
        pass
    assert close(params, plain)
    assert optimizer.rule.coefficients.tolist() != [a for _, a, _ in KINDS]


def test_tensors_that_fam_leaves_alone_take_plain_maxfactor():
    params, plain = [torch.ones(20)], [torch.ones(20)]
    optimizer, reference = FAMMaxFactor(params, lr=0.1), maxfactor.PlainMaxFactor(plain)
    for row in (torch.randn(1, 20, generator=torch.Generator().manual_seed(i)) for i in range(20)):
        params[0].grad = row[0]
        optimizer.step()
        reference.step(list(row))
    assert close(params, plain)


def rule(name, **options):
    return partial(build, "momentum", {"name": name, **options})


@pytest.mark.parametrize(
    "make",
    [
        FAMAdamW,
        partial(AdamW, momentum=rule("random", every=3)),
        partial(AdamW, momentum=rule("fam", start_step=40)),
        partial(AdamW, momentum=rule("fsgdm")),
    ],
)
def test_adamw_under_a_rule_equals_its_plain_form(make):
    params, plain = tensors(), tensors()
    optimizer = make(groups(params), lr=0.01, weight_decay=0.1)
    optimizer.observed = True
    reference = fam_adamw.PlainRuledAdamW(
        plain, lambda: optimizer.metrics["momentum"].tolist(), lr=0.01, weight_decay=0.1
    )
    for _ in walk(optimizer, params, reference, 100):
        pass
    assert close(params, plain)


def test_adamw_under_a_constant_momentum_is_adamw():
    params, others = tensors(), tensors()
    optimizer = AdamW(params, momentum=rule("constant", beta=0.8), lr=0.01)
    other = torch.optim.AdamW(others, lr=0.01, betas=(0.8, 0.98), foreach=False)
    for row in gradients(50):
        for p, q, gradient in zip(params, others, row, strict=True):
            p.grad, q.grad = gradient, gradient.clone()
        optimizer.step()
        other.step()
    assert close(params, others)


@pytest.mark.parametrize("debias", [False, True])
def test_averages_taken_one_by_one_take_the_same_step_as_one_kernel(debias):
    """Where coefficients lie on another device than the host, no kernel takes them all."""
    for make, apart in (
        (partial(FAMAdamW, lr=0.01), {"in_one_kernel": FAMAdamW.in_turn}),
        (partial(EmaSGD, lr=0.1, weight_decay=0.1, debias=debias), {"at_once": EmaSGD.in_turn}),
    ):
        params, others = tensors(), tensors()
        optimizer, other = (
            make(params, momentum=rule("random")),
            make(others, momentum=rule("random")),
        )
        for name, method in apart.items():
            setattr(other, name, partial(method, other))
        for row in gradients(40):
            for p, q, gradient in zip(params, others, row, strict=True):
                p.grad, q.grad = gradient, gradient
            optimizer.step()
            other.step()
        assert close(params, others)


@pytest.mark.parametrize(
    ("part", "plain", "options"),
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
def test_what_is_wrapped_around_another_equals_its_plain_form(part, plain, options):
    params, others = tensors(), tensors()
    base = fam.PlainFAM(others, KINDS, lr=0.1, fam_start_step=40)
    optimizer = part(FAM(groups(params), lr=0.1, fam_start_step=40), **options)
    for _ in walk(optimizer, params, plain(others, base, **options), 100):
        pass
    assert close(params, others)


def test_momentum_per_band_equals_its_plain_form():
    params, plain = tensors(), tensors()
    for _ in walk(FAMBandwise(params, lr=0.1), params, bandwise.PlainBandwise(plain, lr=0.1), 100):
        pass
    assert close(params, plain)


class DeviceFAM(FAM):
    at_once = FAM.in_turn


class DeviceFAMAdamW(FAMAdamW):
    in_one_kernel = FAMAdamW.in_turn


@pytest.mark.parametrize(
    ("part", "on_device", "options"),
    [
        (FAM, DeviceFAM, {"lr": 0.1, "weight_decay": 0.1, "fam_start_step": 20}),
        (FAM, DeviceFAM, {"lr": 0.1, "debias": True, "fam_start_step": 20}),
        (FAMAdamW, DeviceFAMAdamW, {"lr": 0.01, "weight_decay": 0.1}),
        (MaxFactor, MaxFactor, {"clip": 0.1}),
        (FAMBandwise, FAMBandwise, {"lr": 0.1}),
    ],
)
def test_a_step_whose_numbers_stay_on_the_device_is_the_same_step(
    part, on_device, options, monkeypatch
):
    rows = list(gradients(60))
    rows[50] = [g + torch.nan for g in rows[50]]
    found = []
    for kind in (part, on_device):
        params = tensors()
        optimizer = kind(groups(params), **options)
        for row in rows:
            for p, gradient in zip(params, row, strict=True):
                p.grad = gradient
            optimizer.step()
        found.append(params)
        for module in (base, maxfactor_part):  # as where the device is not the host
            monkeypatch.setattr(module, "scalars", lambda values: list(values.unbind()))
    assert close(*found)
