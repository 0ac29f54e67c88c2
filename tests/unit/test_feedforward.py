"""Feedforward blocks against their formulas."""

import jaxtyping
import pytest
import torch
from torch.testing import assert_close

from famx.notation import UserError
from famx.registry import build


def test_swiglu_equals_its_formula():
    module = build("feedforward", {"name": "swiglu", "expansion": 2.0}, d_model=6)
    x = torch.randn(2, 5, 6)
    gate_weight, value_weight = module.gate_value.weight.split(12)
    gate_bias, value_bias = module.gate_value.bias.split(12)
    gate = x @ gate_weight.T + gate_bias
    value = x @ value_weight.T + value_bias
    expected = (gate * gate.sigmoid() * value) @ module.out.weight.T + module.out.bias
    assert_close(module(x), expected)


@pytest.mark.parametrize(
    "activation", ["gelu", "relu", "selu", "leaky_relu", "silu", "elu", "mish"]
)
def test_gelu_applies_the_activation_of_its_option(activation):
    module = build("feedforward", {"name": "gelu", "activation": activation}, d_model=6)
    x = torch.randn(2, 5, 6)
    first, _, last = module
    function = getattr(torch.nn.functional, activation)
    assert_close(module(x), last(function(first(x))))


def test_gated_multiplies_each_position_by_its_gate():
    module = build("feedforward", {"name": "gated"}, d_model=6)
    x = torch.randn(2, 5, 6)
    gate = torch.sigmoid(x @ module.gate.weight.T + module.gate.bias)
    assert_close(module(x), gate * module.mlp(x))


def test_invalid_options_are_refused(monkeypatch):
    # the type checks of the tests would refuse the activation before the part does
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UserError, match="activation=tanh is not one of gelu, relu"):
        build("feedforward", {"name": "gelu", "activation": "tanh"}, d_model=6)
    for name in ("gelu", "swiglu"):
        with pytest.raises(UserError, match=r"expansion=0\.01 leaves no channel of d_model=6"):
            build("feedforward", {"name": name, "expansion": 0.01}, d_model=6)
