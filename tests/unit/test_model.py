"""Layers of one model may differ: each is what a list says, and the rest as everywhere."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from famx.config.schema import CONF, register_schemas, to_plain
from famx.experiment.resolve import resolve
from famx.experiment import build_model
from famx.notation import UserError
from famx.training.loader import LoaderConfig
from famx.training.trainer import TrainerConfig

register_schemas(trainer=TrainerConfig, loader=LoaderConfig)
SMALL = ["model.d_model=24", "model.n_heads=4", "frontend=log_mel", "frontend.channels=4"]


def composed(*words):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return to_plain(compose("train", [*SMALL, *words]))


def layers(*words):
    return build_model(resolve(composed(*words)), vocab_size=11).layers


def test_every_layer_is_what_the_list_says():
    one, two, three = layers(
        "model.layers=[{attention:myelinated,n_heads:2},"
        "{layer:{name:skip,cost:0.5},norm:rmsnorm,rotary:none},{feedforward:{activation:relu},layer:{dropout:0.5}}]"
    )
    assert [type(layer).__name__ for layer in (one, two, three)] == [
        "PreNormLayer",
        "SkipLayer",
        "PreNormLayer",
    ]
    assert type(one.attention).__name__ == "MyelinatedAttention" and one.attention.n_heads == 2
    assert isinstance(two.attention_norm, nn.RMSNorm) and two.cost == 0.5
    assert type(two.attention.rotary).__name__ == "NoRotary" and two.attention.n_heads == 4
    assert isinstance(three.feedforward[1], nn.ReLU) and three.dropout.cut == 128


def test_what_a_layer_leaves_out_is_as_everywhere_or_another_parts_default():
    words = ["feedforward.activation=selu", "feedforward.expansion=2.0", "layer.dropout=0.25"]
    same, other = layers(
        *words, "model.layers=[{feedforward:{expansion:3.0}},{feedforward:gated,layer:parallel}]"
    )
    assert isinstance(same.feedforward[1], nn.SELU) and same.feedforward[0].out_features == 72
    assert same.dropout.cut == 64
    assert (
        isinstance(other.feedforward.mlp[1], nn.GELU)
        and other.feedforward.mlp[0].out_features == 96
    )
    assert other.dropout.cut == 26


def test_a_list_of_equal_layers_is_the_model_without_a_list():
    models = []
    for words in (["model.n_layers=2"], ["model.layers=[{},{}]"]):
        torch.manual_seed(0)
        models.append(build_model(resolve(composed(*words)), vocab_size=11).state_dict())
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(value, models[1][key]) for key, value in models[0].items())


def test_the_settled_list_is_complete_and_settles_to_itself():
    config = resolve(composed("model.layers=[{feedforward:swiglu},{}]", "norm.eps=1e-3"))
    assert config["model"]["n_layers"] == 2
    assert config["model"]["layers"][0]["norm"] == {"name": "layernorm", "eps": 1e-3}
    assert config["model"]["layers"][0]["feedforward"]["expansion"] == pytest.approx(8 / 3)
    assert resolve(config) == config


def test_an_utterance_scores_the_same_alone_and_padded_beside_a_longer_one():
    model, long, short = (
        build_model(resolve(composed()), vocab_size=11).eval(),
        torch.randn(16_000),
        torch.randn(9_600),
    )
    padded = torch.stack((long, nn.functional.pad(short, (0, 6_400))))
    together, lengths = model(padded, torch.tensor([16_000, 9_600]))
    alone, _ = model(short[None])
    assert lengths[1] == alone.shape[1] < lengths[0] == together.shape[1]
    torch.testing.assert_close(together[1:, : lengths[1]], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "told"),
    {
        "[{atention:multihead}]": "a layer has no atention; did you mean attention?",
        "[{attention:multihed}]": "attention=multihed: no such part; did you mean multihead?",
        "[{layer:{drop:0.1}}]": "layer=prenorm has no layer.drop; did you mean dropout?",
        "[{layer:{dropout:much}}]": "layer=prenorm: layer.dropout: Value 'much'.*could not be converted to Float",
        "[{feedforward:{activation:tanh}}]": "Invalid value 'tanh', expected one of .gelu, relu",
        "[{layer:{name:conformer,kernel_size:4}}]": "kernel_size=4 must be odd",
        "[{n_heads:5}]": "d_model=24 is not a multiple of n_heads=5",
        "[{n_heads:two}]": "d_model=24 is not a multiple of n_heads=two",
        "[multihead]": "'multihead' is not a layer, such as",
        "[]": "must be a list of one layer or more",
        "3": "model.layers=3 must be a list of one layer or more",
    }.items(),
)
def test_a_mistake_in_the_list_is_told(given, told):
    with pytest.raises(UserError, match=told):
        layers(f"model.layers={given}")
