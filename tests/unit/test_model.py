"""Models whose layers differ: each layer is what a list says, and otherwise as the whole config."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn
from torch.testing import assert_close

from famx.config.schema import CONF, register_schemas, to_plain
from famx.config.versions import VERSION_BASE
from famx.experiment import build_model
from famx.experiment.resolve import resolve
from famx.model import layer_choices
from famx.notation import UserError
from famx.training.loader_config import LoaderConfig
from famx.training.trainer_config import TrainerConfig

register_schemas(trainer=TrainerConfig, loader=LoaderConfig)
SMALL = ["model.d_model=24", "model.n_heads=4", "frontend=log_mel", "frontend.channels=4"]
VOCAB_SIZE = 11


def compose_config(*words):
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        return to_plain(compose("train", [*SMALL, *words]))


def build(*words):
    return build_model(resolve(compose_config(*words)), VOCAB_SIZE)


def test_every_layer_is_what_the_list_says():
    layers = build(
        "layer=prenorm",
        "model.layers=[{attention:myelinated,n_heads:2},"
        "{layer:{name:skip,cost:0.5},norm:rmsnorm,rotary:none},"
        "{feedforward:{activation:relu},layer:{dropout:0.5}}]",
    ).layers
    first, second, third = layers
    assert type(first).__name__ == "PreNormLayer"
    assert type(first.attention).__name__ == "MyelinatedAttention"
    assert first.attention.n_heads == 2
    assert type(second).__name__ == "SkipLayer"
    assert second.cost == 0.5
    assert isinstance(second.attention_norm, nn.RMSNorm)
    assert type(second.attention.rotary).__name__ == "NoRotary"
    assert second.attention.n_heads == 4
    assert type(third).__name__ == "PreNormLayer"
    assert isinstance(third.feedforward[1], nn.ReLU)
    assert third.dropout.threshold == 128


def test_an_omitted_option_is_that_of_the_config_for_the_same_part_else_the_default():
    same_parts, new_parts = build(
        "feedforward.activation=selu",
        "feedforward.expansion=2.0",
        "layer=prenorm",
        "layer.dropout=0.25",
        "model.layers=[{feedforward:{expansion:3.0}},{feedforward:gated,layer:parallel}]",
    ).layers
    assert isinstance(same_parts.feedforward[1], nn.SELU)
    assert same_parts.feedforward[0].out_features == 3 * 24
    assert same_parts.dropout.threshold == 64
    assert isinstance(new_parts.feedforward.mlp[1], nn.GELU)
    assert new_parts.feedforward.mlp[0].out_features == 4 * 24
    assert new_parts.dropout.threshold == 26


def test_a_list_of_empty_entries_is_the_model_without_a_list():
    weights = []
    for words in ("model.n_layers=2", "model.layers=[{},{}]"):
        torch.manual_seed(0)
        weights.append(build(words).state_dict())
    counted, listed = weights
    assert counted.keys() == listed.keys()
    assert all(torch.equal(counted[name], listed[name]) for name in counted)


def test_a_resolved_list_is_complete_and_resolves_to_itself():
    config = resolve(compose_config("model.layers=[{feedforward:swiglu},{}]", "norm.eps=1e-3"))
    first = config["model"]["layers"][0]
    assert config["model"]["n_layers"] == 2
    assert first["norm"] == {"name": "layernorm", "eps": 1e-3}
    assert first["feedforward"]["expansion"] == pytest.approx(8 / 3)
    assert resolve(config) == config


def test_scores_do_not_depend_on_padding_or_the_batch():
    model = build().eval()
    long = torch.randn(16_000)
    short = torch.randn(9_600)
    padded = torch.stack((long, nn.functional.pad(short, (0, 6_400))))
    batched, lengths = model(padded, torch.tensor([16_000, 9_600]))
    expected, _ = model(short[None])
    assert lengths.tolist() == [batched.shape[1], expected.shape[1]]
    assert lengths[1] < lengths[0]
    assert_close(batched[1:, : lengths[1]], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("layers", "message"),
    {
        "[{atention:multihead}]": "a layer has no atention; did you mean attention?",
        "[{attention:multihed}]": "attention=multihed: no such part; did you mean multihead?",
        "[{layer:{drop:0.1}}]": "layer=prenorm has no layer.drop; did you mean dropout?",
        "[{layer:{dropout:much}}]": "layer=prenorm: layer.dropout: it must be a number, got much",
        "[{feedforward:{activation:tanh}}]": "'tanh'.*gelu, relu",
        "[{layer:{name:conformer,kernel_size:4}}]": "kernel_size=4 must be odd",
        "[{n_heads:5}]": "d_model=24 is not a multiple of n_heads=5",
        "[{n_heads:two}]": "d_model=24 is not a multiple of n_heads=two",
        "[multihead]": "entries must be mappings like .*, got 'multihead'",
        "[]": "must be a list of at least one layer",
    }.items(),
)
def test_a_mistake_in_the_list_is_explained(layers, message):
    with pytest.raises(UserError, match=message):
        build("layer=prenorm", f"model.layers={layers}")


def test_layers_that_are_no_list_are_refused():
    with pytest.raises(UserError, match=r"model\.layers=3 must be a list of at least one layer"):
        layer_choices({"model": {"name": "small", "layers": 3}})


def test_layers_are_sampled_before_the_model_is_built():
    with pytest.raises(UserError, match="model=drawn has no layers before they are sampled"):
        layer_choices(compose_config("model=drawn"))
