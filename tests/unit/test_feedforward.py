import jaxtyping
import pytest
import torch
from torch.testing import assert_close

from famx.contracts import applicable, contracts
from famx.notation import UserError
from famx.registry import PARTS, build, names


@pytest.mark.parametrize(
    ("name", "law"),
    [
        (name, law)
        for name in names("feedforward")
        for law in applicable("feedforward", PARTS["feedforward"][name])
    ],
)
def test_law(name, law):
    contracts("feedforward")[law](PARTS["feedforward"][name])


def test_swiglu_equals_its_formula():
    module, x = (
        build("feedforward", {"name": "swiglu", "expansion": 2.0}, d_model=6),
        torch.randn(2, 5, 6),
    )
    (gate, value), (gate_bias, value_bias) = (
        module.gate_value.weight.split(12),
        module.gate_value.bias.split(12),
    )
    gate = x @ gate.T + gate_bias
    assert_close(
        module(x),
        (gate * gate.sigmoid() * (x @ value.T + value_bias)) @ module.out.weight.T
        + module.out.bias,
    )


@pytest.mark.parametrize(
    "activation", ["gelu", "relu", "selu", "leaky_relu", "silu", "elu", "mish"]
)
def test_gelu_takes_its_family(activation):
    module, x = (
        build("feedforward", {"name": "gelu", "activation": activation}, d_model=6),
        torch.randn(2, 5, 6),
    )
    first, _, last = module
    assert_close(module(x), last(getattr(torch.nn.functional, activation)(first(x))))


def test_gated_lets_through_what_its_gate_says():
    module, x = build("feedforward", {"name": "gated"}, d_model=6), torch.randn(2, 5, 6)
    assert_close(
        module(x), torch.sigmoid(x @ module.gate.weight.T + module.gate.bias) * module.mlp(x)
    )


def test_what_cannot_be_is_refused(monkeypatch):
    # else the hook of the tests refuses the word before the part does
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UserError, match="activation=tanh is not one of gelu, relu"):
        build("feedforward", {"name": "gelu", "activation": "tanh"}, d_model=6)
    with pytest.raises(UserError, match=r"expansion=0\.01 leaves no channel of d_model=6"):
        build("feedforward", {"name": "swiglu", "expansion": 0.01}, d_model=6)
