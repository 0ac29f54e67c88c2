"""Parameters are sorted by the kind of the module that owns them."""

import inspect
import math

import pytest
import torch
from torch import nn

from famx.notation import UserError
from famx.optim import FAM, parameter_groups


class AttentionBlock(nn.Module):
    kind = "attention"

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)


def test_a_parameter_has_the_kind_of_the_module_that_owns_it():
    model = nn.ModuleDict(
        {
            "layer_conv": nn.Conv1d(8, 8, 3),
            "attention_table": nn.Embedding(9, 8),
            "block": AttentionBlock(),
            "mha": nn.MultiheadAttention(8, 2),
            "embed": nn.Linear(8, 9),
            "frozen": nn.Linear(8, 8).requires_grad_(False),
        }
    )
    # a shared parameter belongs to its first owner
    model["embed"].weight = model["attention_table"].weight
    groups = parameter_groups(model, lr=1.0, weight_decay=0.1)
    name_of = {id(p): name for name, p in model.named_parameters()}
    names = {}
    for group in groups:
        assert group["param_names"] == [name_of[id(p)] for p in group["params"]]
        names[group["kind"]] = set(group["param_names"])
    vectors = {name for name in name_of.values() if "bias" in name or "norm" in name}
    assert names == {
        "conv": {"layer_conv.weight"},
        "embedding": {"attention_table.weight"},
        "attention": {"block.project.weight", "mha.in_proj_weight", "mha.out_proj.weight"},
        "norm": vectors - {"frozen.bias"},
    }
    rates = {group["kind"]: group["lr"] for group in groups}
    assert rates["embedding"] == 0.8
    assert rates["conv"] == 1.0
    decays = {group["kind"]: round(group["weight_decay"], 9) for group in groups}
    assert decays == {"conv": 0.1, "attention": 0.1, "embedding": 0.15, "norm": 0.0}
    # what is not set is left to the optimizer; alpha is set for all kinds
    assert "lr" not in parameter_groups(model)[0]
    assert {group["alpha"] for group in parameter_groups(model, alpha=0.5)} == {0.5}


def test_settings_of_one_kind_override_those_of_all():
    model = nn.Sequential(nn.Conv1d(2, 2, 3), nn.Embedding(3, 2), nn.Linear(2, 3))
    kinds = {
        "conv": {"alpha": 0.5, "n_bands": None},
        "embedding": {"lr_scale": 0.1, "decay_scale": 0.0},
    }
    groups = {}
    for group in parameter_groups(model, lr=1.0, weight_decay=0.1, kinds=kinds, alpha=0.7):
        groups[group["kind"]] = group
    assert [groups[kind]["alpha"] for kind in ("conv", "embedding", "other")] == [0.5, 0.7, 0.7]
    assert groups["conv"]["n_bands"] == 10
    assert groups["conv"]["lr"] == 1.0
    assert groups["embedding"]["lr"] == 0.1
    assert groups["embedding"]["weight_decay"] == 0.0


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"convv": {"alpha": 0.5}}, "no such kind; did you mean conv"),
        ({"conv": {"alpa": 0.5}}, "no such setting; did you mean alpha"),
        ({"conv": {"alpha": math.nan}}, "param_groups.conv.alpha=nan must be finite"),
        ({"conv": {"alpha": "much"}}, "param_groups.conv.alpha=much must be a number"),
    ],
)
def test_settings_that_would_change_nothing_are_refused(kinds, message):
    with pytest.raises(UserError, match=message):
        parameter_groups(nn.Linear(3, 3), kinds=kinds)


def test_negative_rates_and_parameters_without_shape_are_refused():
    with pytest.raises(UserError, match=r"lr=-1\.0 must be at least 0"):
        parameter_groups(nn.Linear(3, 3), lr=-1.0)
    with pytest.raises(UserError, match="a LazyLinear has no shape yet"):
        parameter_groups(nn.LazyLinear(3))


def test_parameters_without_their_model_are_refused():
    # the tests check types at each call, which famx itself does not
    for parameters in (nn.Linear(3, 3).parameters(), list(nn.Linear(3, 3).parameters())):
        with pytest.raises(UserError, match="parameter_groups needs the model"):
            inspect.unwrap(parameter_groups)(parameters)


def test_a_kind_attribute_with_another_meaning_is_ignored():
    class Head(nn.Linear):
        kind = "classifier"

    assert {group["kind"] for group in parameter_groups(Head(3, 3))} == {"norm", "other"}


def test_every_trained_parameter_is_in_one_group():
    model = nn.Sequential(nn.Embedding(9, 8), nn.Conv1d(5, 5, 3), nn.LayerNorm(30))
    params = [p for group in parameter_groups(model) for p in group["params"]]
    assert len(params) == len(set(params))
    assert set(params) == set(model.parameters())
    assert all(isinstance(p, torch.nn.Parameter) for p in params)


@pytest.mark.parametrize(
    ("option", "remedy"), [("beta", "set it in the constructor"), ("eps", "remove it")]
)
def test_options_that_do_not_act_per_group_are_refused_with_a_remedy(option, remedy):
    group = {"params": [nn.Parameter(torch.ones(3))], option: 0.5}
    with pytest.raises(UserError, match=f"{option}=0.5 has no effect in a group of FAM: {remedy}"):
        FAM([group])
