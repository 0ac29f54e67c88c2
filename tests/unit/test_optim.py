"""Special settings, state and refusals of optimizers, besides their contracts."""

import math
import pickle
from functools import partial

import jaxtyping
import pytest
import torch
from reference.walk import close, gradients, groups, tensors
from torch import nn

from famx.nn.hooks import Observed, SkipsNonFinite, UsesMomentumRule
from famx.notation import UserError
from famx.optim import (
    FAM,
    SGD,
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
    SimpleFAM,
)
from famx.optim._param_groups import group_settings
from famx.optim.base import Optimizer
from famx.registry import build, get, hyperparameters, names
from famx.training.trainer_config import TrainerConfig

UPDATE_RULES = [name for name in names("optim") if issubclass(get("optim", name), Optimizer)]


def test_ema_sgd_equals_sgd_with_dampening():
    params = tensors()
    optimizer = EmaSGD(params, lr=0.1, alpha=0.9, weight_decay=0.2, decoupled=False)
    expected = tensors()
    sgd = torch.optim.SGD(expected, lr=0.1, momentum=0.9, dampening=0.9, weight_decay=0.2)
    for i, row in enumerate(gradients(100)):
        for p, q, gradient in zip(params, expected, row, strict=True):
            p.grad = gradient
            # torch does not dampen the first gradient
            q.grad = gradient.clone() if i else gradient * 0.1 - 0.18 * q
        optimizer.step()
        sgd.step()
    assert close(params, expected)


def test_debiased_average_is_divided_by_the_sum_of_its_weights():
    param = torch.zeros(5)
    optimizer = EmaSGD([param], lr=0.1, alpha=0.7, debias=True)
    expected = torch.zeros(5)
    average = torch.zeros(5)
    for t in range(1, 20):
        param.grad = torch.randn(5)
        average = 0.7 * average + 0.3 * param.grad
        expected -= 0.1 * average / (1 - 0.7**t)
        optimizer.step()
    assert torch.allclose(param, expected, atol=1e-6)


@pytest.mark.parametrize("name", UPDATE_RULES)
def test_the_step_after_a_skipped_first_step_is_a_first_step(name):
    options = {"debias": True} if name in ("ema_sgd", "fam") else {}
    results = []
    for first_gradients in ([], [torch.nan]):
        param = nn.Parameter(torch.ones(4, 3))
        optimizer = build("optim", {"name": name, **options}, params=[param])
        for gradient in [*first_gradients, 1.0]:
            param.grad = torch.full((4, 3), gradient)
            optimizer.step()
        results.append(param)
    assert torch.equal(*results)
    assert results[0].isfinite().all()
    assert (results[0] < 1).all()


def test_found_inf_replaces_the_check_of_the_next_step_only():
    param = nn.Parameter(torch.ones(3))
    optimizer = EmaSGD([param], lr=0.1)
    optimizer.found_inf = torch.ones(())
    optimizer.step()  # without a gradient
    param.grad = torch.ones(3)
    optimizer.step()
    assert (param < 1).all()
    assert optimizer.skipped == 0
    optimizer.found_inf = torch.ones(())
    before = param.detach().clone()
    optimizer.step()
    assert torch.equal(param, before)
    assert optimizer.skipped == 1


def test_momentum_is_zero_where_gradients_are_not_averaged():
    params = [nn.Parameter(torch.randn(40, 30)), nn.Parameter(torch.randn(30))]
    for name, expected in (("maxfactor", [0.0, 0.0]), ("fam_maxfactor", [0.9, 0.0])):
        optimizer = build("optim", {"name": name}, params=params)
        optimizer.rule.start_step = 0
        optimizer.observed = True
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()
        assert optimizer.metrics["momentum"].tolist() == pytest.approx(expected)


def test_weight_decay_acts_without_a_gradient_signal():
    param = torch.ones(5)
    param.grad = torch.zeros(5)
    FAM([param], lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(param, torch.full((5,), 0.95))


@pytest.mark.parametrize("part", [FAM, SimpleFAM, FAMPublished, EmaSGD, FAMAdamW, MaxFactor])
def test_refusals_state_the_rule_and_the_value(part):
    with pytest.raises(ValueError, match=r"alpha=1.5 is not in \[0, 1\)"):
        part([{"params": [torch.ones(3)], "alpha": 1.5}])
    for lr in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"lr={lr} must be a number, at least 0 and finite"):
            part([torch.ones(3)], lr=lr)
    with pytest.raises(ValueError, match=r"lr='0\.1' must be a number"):
        part([{"params": [torch.ones(3)], "lr": "0.1"}])
    with pytest.raises(UserError, match="unknown kind=attn; did you mean attention"):
        part([{"params": [torch.ones(3)], "kind": "attn"}])
    with pytest.raises(ValueError, match=r"n_bands=2\.5 must be an integer of at least 1"):
        part([{"params": [torch.ones(3)], "n_bands": 2.5}])
    with pytest.raises(ValueError, match="complex64"):
        part([torch.ones(3, dtype=torch.complex64)])
    with pytest.raises(UserError, match="pass all groups there"):
        part([torch.ones(3)]).add_param_group({"params": [torch.ones(3)]})
    with pytest.raises(UserError, match="the state does not fit this"):
        part([torch.ones(3)]).load_state_dict(torch.optim.SGD([torch.ones(3)]).state_dict())


def test_options_of_the_default_rule_are_refused_with_another_rule():
    rule = partial(build, "momentum", {"name": "constant", "beta": 0.5})
    optimizer = FAM([torch.ones(3)], momentum=rule)
    assert optimizer.rule.base.tolist() == [0.5]
    with pytest.raises(UserError, match=r"beta=0.5 is an option of momentum=fam"):
        FAM([torch.ones(3)], momentum=rule, beta=0.5)


def test_a_spectrum_is_refused_by_a_rule_that_measures_none():
    rule = partial(build, "momentum", {"name": "constant"})
    spectrum = partial(build, "spectrum", {"name": "shuffled"})
    optimizer = FAM([torch.ones(300)], spectrum=spectrum)
    assert type(optimizer.rule.spectrum).__name__ == "Shuffled"
    with pytest.raises(UserError, match="measures no spectrum"):
        FAM([torch.ones(3)], momentum=rule, spectrum=spectrum)


@pytest.mark.parametrize("part", [AdamW, SGD, Lookahead])
def test_torchs_optimizers_refuse_momentum_rules(part):
    for room in ("momentum", "spectrum"):
        with pytest.raises(UserError, match="optim=fam_adamw"):
            part([torch.ones(3)], **{room: nn.Module})


def test_a_name_is_refused_as_a_factory(monkeypatch):
    # jaxtyping's own refusal would come first
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UserError, match="momentum='fam' is not a factory"):
        FAM([torch.ones(3)], momentum="fam")


def test_unknown_options_are_refused():
    for part in (FAM, SimpleFAM, AdamW, Lookahead):
        with pytest.raises(TypeError, match="lrr"):
            part([torch.ones(3)], lrr=nn.Module)


def test_metrics_are_the_chosen_momentum():
    params = tensors()
    optimizer = FAM(groups(params), lr=0.1, fam_start_step=40)
    optimizer.observed = True
    for row in gradients(60):
        for p, gradient in zip(params, row, strict=True):
            p.grad = gradient
        optimizer.step()
    means = {f"momentum/{kind}" for kind in ("conv", "attention", "embedding", "norm", "other")}
    assert set(optimizer.metrics) == {"momentum", "skipped"} | means
    assert torch.equal(optimizer.metrics["momentum"], optimizer.rule.coefficients)
    assert optimizer.rule.metrics, "the rule is observed too"


@pytest.mark.parametrize("name", names("optim"))
def test_a_pickled_optimizer_takes_the_same_steps(name):
    params = [nn.Parameter(torch.ones(20, 30)), nn.Parameter(torch.ones(30))]
    optimizer = build("optim", {"name": name}, params=params)
    for _ in range(2):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
        copied_optimizer, copies = pickle.loads(pickle.dumps((optimizer, params)))
    for p, copied in zip(params, copies, strict=True):
        copied.grad = p.grad
    optimizer.step()
    copied_optimizer.step()
    assert all(map(torch.equal, params, copies))


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0)])
@pytest.mark.parametrize("part", [FAM, FAMAdamW, FAMBandwise, FAMMaxFactor, MaxFactor, AdamW])
def test_tensors_without_entries_are_ignored(part, shape):
    params = [nn.Parameter(torch.ones(shape)), nn.Parameter(torch.ones(3))]
    optimizer = part(params)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert (params[1] < 1).all()
    optimizer.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("full_matrix", [False, True])
def test_a_matrix_whose_squares_overflow_is_not_changed(full_matrix):
    matrix = nn.Parameter(torch.ones(20, 30))
    vector = nn.Parameter(torch.ones(5))
    optimizer = MaxFactor([matrix, vector], full_matrix=full_matrix)
    for size in (1.0, 1e20, 1.0):
        before = matrix.detach().clone()
        for p in (matrix, vector):
            p.grad = torch.full_like(p, size)
        optimizer.step()
        assert torch.equal(before, matrix) == (size > 1)
        assert matrix.isfinite().all()
        assert vector.isfinite().all()


@pytest.mark.parametrize(
    "part",
    [
        AdamW,
        FAM,
        FAMAdamW,
        FAMMaxFactor,
        MaxFactor,
        partial(Lookahead, k=1),
        partial(EMANesterov, start_step=0),
    ],
)
def test_a_state_in_single_precision_is_loaded_in_half(part):
    single = nn.Parameter(torch.ones(20, 30))
    half = nn.Parameter(torch.ones(20, 30, dtype=torch.bfloat16))
    optimizers = []
    for p in (single, half):
        optimizer = part([p], lr=0.01)
        p.grad = torch.ones_like(p)
        optimizer.step()
        optimizers.append(optimizer)
    state = optimizers[1].state
    dtypes = {name: value.dtype for name, value in state[half].items()}
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    state = optimizers[1].state
    assert {name: value.dtype for name, value in state[half].items()} == dtypes
    optimizers[1].step()
    assert half.isfinite().all()


def test_muon_refuses_bad_settings_and_late_groups():
    with pytest.raises(UserError, match="pass all groups there"):
        Muon([torch.ones(3, 3)]).add_param_group({"params": [torch.ones(3)]})
    with pytest.raises(ValueError, match=r"alpha=1.5 must be in \[0, 1\)"):
        Muon([torch.ones(3, 3)], alpha=1.5)


@pytest.mark.parametrize("part", [AdamW, Muon, Lookahead])
def test_torchs_optimizers_refuse_complex_parameters(part):
    with pytest.raises(ValueError, match="complex64"):
        part([torch.ones(3, dtype=torch.complex64)])


@pytest.mark.parametrize(("coefficient", "message"), [(1.2, r"1\.2"), (math.nan, "nan")])
def test_a_rule_with_a_coefficient_outside_its_range_is_refused(coefficient, message):
    rule = partial(build, "momentum", {"name": "constant"})
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = FAM([param], momentum=rule)
    optimizer.rule.base = torch.full((1,), coefficient)
    pattern = rf"momentum rule Constant returns {message}\d*, a coefficient must be in \[0, 1\)"
    with pytest.raises(UserError, match=pattern):
        optimizer.step()


def test_abilities_of_optimizers_are_protocols():
    abilities = (Observed, SkipsNonFinite, UsesMomentumRule)
    expected = [
        (FAM([torch.ones(3)]), (True, True, True)),
        (Lookahead(FAM([torch.ones(3)])), (True, True, True)),
        (AdamW([torch.ones(3)]), (True, True, False)),
        (Lookahead([torch.ones(3)]), (True, True, False)),
        (Lookahead(torch.optim.SGD([torch.ones(3)])), (True, False, False)),
        (Lookahead(Lookahead(FAM([torch.ones(3)]))), (True, True, True)),
    ]
    for optimizer, able in expected:
        assert tuple(isinstance(optimizer, ability) for ability in abilities) == able


def test_a_wrapper_passes_found_inf_to_its_base():
    param = nn.Parameter(torch.ones(3))
    optimizer = Lookahead(FAM([param]))
    param.grad = torch.ones(3)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert torch.equal(param, torch.ones(3))
    assert optimizer.found_inf is None
    assert optimizer.skipped == optimizer.base.skipped == 1
    with pytest.raises(AttributeError, match="SGD does not support found_inf"):
        Lookahead(torch.optim.SGD([param])).found_inf = torch.ones(())


def test_agc_clips_by_less_than_the_trainer():
    # a limit above that of the trainer would never act
    clip = hyperparameters(get("optim", "agc"))["clip"].default
    assert clip < TrainerConfig().unit_clip


def test_group_settings_are_those_that_the_config_changes():
    wrapper = {"name": "lookahead", "base": "adamw", "lr": None, "k": 5, "share": 0.5}
    assert group_settings(wrapper) == {"lr": 2e-3, "weight_decay": 0.01}
    assert group_settings(wrapper | {"base": "ema_sgd", "lr": 0.5}) == {
        "lr": 0.5,
        "weight_decay": 0.0,
    }
    adamw = {"name": "adamw", "lr": 0.1, "betas": [0.9, 0.98], "weight_decay": 0.0}
    assert group_settings(adamw) == {"lr": 0.1, "weight_decay": 0.0}
    assert group_settings(adamw | {"betas": [0.8, 0.98]})["alpha"] == 0.8
    fam = {"name": "fam", "lr": 20.0, "alpha": 0.9, "weight_decay": 0.0, "n_bands": 6}
    assert group_settings(fam) == {"lr": 20.0, "weight_decay": 0.0, "n_bands": 6}
