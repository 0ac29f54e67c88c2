"""State of optimizers that is checked on load, and steps that are skipped."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from famx.notation import UserError
from famx.optim import FAM, parameter_groups
from famx.optim._skipping import unchanged_where
from famx.optim._wrapper import Wrapper
from famx.registry import build, get, hyperparameters, names


@pytest.mark.parametrize("name", ["adamw", "nadamw", "sgd", "adafactor"])
def test_the_first_state_is_that_of_torch(name):
    params = [nn.Parameter(torch.ones(20, 30)), nn.Parameter(torch.ones(5))]
    optimizer = build("optim", {"name": name}, params=params)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    for group in optimizer.param_groups:
        for p in group["params"]:
            initial = optimizer.init(p, group)
            state = optimizer.state[p]
            assert initial.keys() == state.keys()
            for key, value in initial.items():
                assert value.shape == state[key].shape
                assert value.dtype == state[key].dtype


@pytest.mark.parametrize("name", ["nadamw", "sgd"])
def test_a_step_that_is_restored_equals_no_step(name):
    results = []
    for sizes in ([1.0, 2.0], [torch.nan, 1.0, torch.inf, 2.0]):
        params = [nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(3))]
        optimizer = build("optim", {"name": name}, params=params)
        for value in sizes:
            for p in params:
                p.grad = torch.full_like(p, value)
            found_inf = torch.tensor(float(not math.isfinite(value)))
            # as on a device, where the flag cannot be read
            with torch.no_grad(), unchanged_where(found_inf, optimizer._step_tensors(params)):
                optimizer.take_step(torch.zeros(()))
        results.append(params)
    assert all(map(torch.equal, *results))


def test_many_skipped_steps_in_a_row_are_warned_of_once():
    for name in names("optim"):
        param = nn.Parameter(torch.ones(4, 3))
        optimizer = build("optim", {"name": name}, params=[param])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for value in (*[math.nan] * 19, 1.0, *[math.nan] * 45):
                param.grad = torch.full_like(param, value)
                optimizer.step()
        messages = [str(warning.message) for warning in caught]
        assert len([text for text in messages if "has skipped 20 steps in a row" in text]) == 1


@pytest.mark.parametrize("name", names("optim"))
def test_named_parameters_keep_their_names(name):
    named = list(nn.Linear(3, 4).named_parameters())
    optimizer = build("optim", {"name": name}, params=named)
    groups = optimizer.state_dict()["param_groups"]
    assert sorted(n for group in groups for n in group["param_names"]) == ["bias", "weight"]


@pytest.mark.parametrize("name", names("optim"))
def test_state_is_matched_by_the_names_of_a_model(name):
    models = [nn.Sequential(), nn.Sequential()]
    torch.manual_seed(0)
    layers = [("a", nn.Linear(30, 30)), ("b", nn.Linear(30, 30))]
    for key, layer in layers:
        models[0].add_module(key, layer)
    # the same layers, built in another order: equal shapes, so that positions would fit
    for key, layer in reversed(layers):
        models[1].add_module(key, copy.deepcopy(layer))
    optimizers = [build("optim", {"name": name}, params=parameter_groups(m)) for m in models]

    def take_steps(model, optimizer):
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            for key, _ in layers:
                for p in model.get_submodule(key).parameters():
                    p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()

    take_steps(models[0], optimizers[0])
    models[1].load_state_dict(models[0].state_dict())
    try:
        optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    except UserError as error:
        # a rule with a state of its own, with one row for each tensor
        assert "has its tensors in another order" in str(error)
        return
    for model, optimizer in zip(models, optimizers, strict=True):
        take_steps(model, optimizer)
    for key, value in models[0].state_dict().items():
        assert torch.equal(value, models[1].state_dict()[key])


def test_a_flattened_distributed_state_is_refused_in_a_sentence():
    model = nn.Linear(3, 4)
    optimizer = FAM(model.parameters(), lr=0.1)
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    saved = get_optimizer_state_dict(model, optimizer, options=options)
    with pytest.raises(UserError, match="the state does not fit this FAM"):
        set_optimizer_state_dict(model, optimizer, saved, options=options)


@pytest.mark.filterwarnings("ignore")
def test_a_distributed_checkpoint_of_files_resumes_exactly(tmp_path):
    results = []
    model = nn.Linear(30, 40)
    optimizer = FAM(model.parameters(), lr=0.1)
    for resumes in (False, True):
        if resumes:
            optimizer = FAM(model.parameters(), lr=0.1)
            target = {"optimizer": get_optimizer_state_dict(model, optimizer)}
            dcp.load(target, checkpoint_id=tmp_path, no_dist=True)
            set_optimizer_state_dict(model, optimizer, target["optimizer"])
        for p in model.parameters():
            p.grad = torch.linspace(-1, 1, p.numel()).view(p.shape)
        if not resumes:
            optimizer.step()
            saved = {"optimizer": get_optimizer_state_dict(model, optimizer)}
            dcp.save(saved, checkpoint_id=tmp_path, no_dist=True)
            weights = {key: value.clone() for key, value in model.state_dict().items()}
        optimizer.step()
        results.append([p.detach().clone() for p in model.parameters()])
        model.load_state_dict(weights)
        # torch asks for the state of a new optimizer by a step without gradients
        model.zero_grad()
    assert all(map(torch.equal, *results))


def test_every_optimizer_can_maximize():
    for name in names("optim"):
        assert "maximize" in hyperparameters(get("optim", name))
        # as an argument of a wrapper around an optimizer that exists, it would have no effect
        if issubclass(get("optim", name), Wrapper):
            with pytest.raises(UserError, match="set lr, maximize"):
                get("optim", name)(FAM([nn.Parameter(torch.ones(3))]), maximize=True)


@pytest.mark.parametrize("name", names("optim"))
def test_an_argument_acts_per_group_or_is_refused(name):
    part = get("optim", name)
    for key, parameter in hyperparameters(part).items():
        group = {"params": [nn.Parameter(torch.ones(4, 3))], key: parameter.default}
        try:
            optimizer = part([group])
        except UserError as error:
            assert f"{key}=" in str(error)
            continue
        assert key in optimizer.defaults


@pytest.mark.parametrize("name", names("optim"))
def test_class_defaults_are_safe_in_a_plain_loop(name):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=generator)
    y = x @ torch.randn(8, 2, generator=generator) * 3
    for hidden in (0, 16):
        torch.manual_seed(0)
        layers = [nn.Linear(8, 2)]
        if hidden:
            layers = [nn.Linear(8, hidden), nn.Tanh(), nn.Linear(hidden, 2)]
        model = nn.Sequential(*layers)
        optimizer = get("optim", name)(model.parameters())
        losses = []
        for _ in range(150):
            loss = nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.97 * losses[0]
        assert max(losses) < 2 * losses[0]
        assert optimizer.skipped == 0


def test_fam_maxfactor_is_maxfactor_before_its_rule_starts():
    results = []
    for name in ("maxfactor", "fam_maxfactor"):
        generator = torch.Generator().manual_seed(0)
        params = [nn.Parameter(torch.ones(40, 30)), nn.Parameter(torch.ones(30))]
        optimizer = build("optim", {"name": name, "lr": 0.1}, params=params)
        for _ in range(100):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
        results.append(params)
    assert all(map(torch.equal, *results))
