"""The declared search space: its defaults, every form that it may have, and its errors."""

import pytest
from hydra import compose, initialize_config_dir

from famx.config.schema import CONF, register_schemas, to_plain
from famx.config.versions import VERSION_BASE
from famx.experiment._search_space import Range, parse_space
from famx.notation import UserError
from famx.registry import names
from famx.training.loader_config import LoaderConfig
from famx.training.trainer_config import TrainerConfig

register_schemas(trainer=TrainerConfig, loader=LoaderConfig)
ACTIVATIONS = ["gelu", "relu", "selu", "leaky_relu", "silu", "elu", "mish"]


def parse(space, **draw):
    return parse_space({"space": space, **draw}, d_model=24)


def parse_preset(*words):
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        config = to_plain(compose("train", ["model.d_model=24", *words]))
    return parse_space(config["model"]["draw"], d_model=24)


def test_defaults_are_replaced_and_recorded():
    feedforward = {
        "gelu": {"activation": ACTIVATIONS, "expansion": {"low": 2.0, "high": 4.0}},
        "gated": {"activation": ACTIVATIONS},
        "swiglu": {},
    }
    space = parse_preset(
        "model=drawn", "model.draw.seed=7", "model.draw.mutate={seed: 3, genes: 1}"
    )
    # the record, which a run saves, has what was declared; the space what it stands for
    assert space.record == {
        "seed": 7,
        "mutate": {"seed": 3, "genes": 1},
        "space": {
            "n_heads": [2, 3, 4, 6, 8, 12],
            "attention": "all",
            "rotary": "all",
            "norm": "all",
            "feedforward": feedforward,
            "layer": "all",
        },
    }
    assert (space.seed, space.mutation_seed, space.n_mutations) == (7, 3, 1)
    assert list(space.rooms["attention"]) == names("attention")
    assert space.rooms["feedforward"]["gelu"]["expansion"] == Range(2.0, 4.0)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("default", {"layernorm": {}, "rmsnorm": {}}),
        ("all", {name: {} for name in names("norm")}),
        ("[rmsnorm]", {"rmsnorm": {}}),
        ("{rmsnorm:null}", {"rmsnorm": {}}),
        ("{rmsnorm:{eps:0.001}}", {"rmsnorm": {"eps": [0.001]}}),
    ],
)
def test_the_command_line_replaces_a_default(word, expected):
    space = parse_preset("model=encoder_layers", f"model.draw.space.norm={word}")
    assert space.rooms["norm"] == expected


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        (4, [4]),
        ([4, 5, 8], [4, 8]),
        ({"low": 2, "high": 9}, [2, 3, 4, 6, 8]),
        ({"low": 7, "high": 2**60}, [8, 12, 24]),
    ],
)
def test_numbers_of_heads_divide_d_model(declared, expected):
    space = parse({"n_heads": declared})
    assert space.n_heads == expected
    assert space.record["space"] == {"n_heads": declared}


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        (["swiglu"], {"swiglu": {}}),
        ({"swiglu": None}, {"swiglu": {}}),
        ({"gelu": {"activation": "relu"}}, {"gelu": {"activation": ["relu"]}}),
        ({"swiglu": {"expansion": [1, 2]}}, {"swiglu": {"expansion": [1, 2]}}),
        (
            {"swiglu": {"expansion": {"low": 1, "high": 2.5}}, "gelu": {}},
            {"swiglu": {"expansion": Range(1, 2.5)}, "gelu": {}},
        ),
    ],
)
def test_a_room_may_have_every_form(declared, expected):
    assert parse({"feedforward": declared}).rooms == {"feedforward": expected}


def test_a_room_that_is_not_declared_is_not_sampled():
    space = parse({"norm": "all"})
    assert space.n_heads is None
    assert space.rooms == {"norm": {name: {} for name in names("norm")}}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"nrm": "all"}, "a layer has no nrm; did you mean norm?"),
        ({"3": "all"}, "model.draw.space.3: a layer has no 3"),
        # parts
        ({"norm": ["layrnorm"]}, "norm=layrnorm: no such part; did you mean layernorm?"),
        ({"norm": []}, r"norm=\[\] must be `all`, a list of parts, or a mapping"),
        ({"norm": "some"}, "norm=some must be `all`, a list of parts, or a mapping"),
        ({"norm": "default"}, "norm=default must be `all`, a list of parts, or a mapping"),
        ({"norm": None}, "norm=None must be `all`, a list of parts, or a mapping"),
        ({"norm": [{"rmsnorm": {}}]}, r"norm=\[{'rmsnorm': {}}\] must be `all`, a list of parts"),
        # hyperparameters
        ({"norm": {"layernorm": {"epsilon": [1]}}}, "norm=layernorm has no norm.epsilon"),
        ({"norm": {"layernorm": {"eps": []}}}, "layernorm.eps is an empty list"),
        ({"norm": {"layernorm": {"eps": [1e-3, "small"]}}}, "eps: it must be a number, got small"),
        ({"attention": {"topk": 4}}, "topk=4 must be a mapping from hyperparameters"),
        ({"attention": {"topk": {"name": ["multihead"]}}}, "topk={.*} must be a mapping from hyp"),
        ({"attention": {"topk": {3: [4]}}}, "attention=topk has no attention.3; choose from keys"),
        # ranges
        ({"norm": {"layernorm": {"eps": {"low": 1, "top": 2}}}}, "must be a range of two numbers"),
        ({"norm": {"layernorm": {"eps": {"low": 0.1, "high": float("inf")}}}}, "must be a range"),
        ({"norm": {"layernorm": {"eps": {"low": 0.1, "high": True}}}}, "must be a range"),
        ({"norm": {"layernorm": {"eps": {"low": 2, "high": 1}}}}, "low=2 is above high=1"),
        (
            {"attention": {"topk": {"keys": {"low": 1, "high": 10**20}}}},
            "keys={.*} must be a range",
        ),
        # numbers of heads
        ({"n_heads": [5, 7]}, r"n_heads=\[5, 7\]: no such number divides d_model=24"),
        ({"n_heads": {"low": 30, "high": 90}}, "no such number divides d_model=24"),
        ({"n_heads": ["two"]}, "a number of heads is an integer of at least 1"),
        ({"n_heads": [True]}, "a number of heads is an integer of at least 1"),
        ({"n_heads": {"low": 2.0, "high": 8.0}}, "high': 8.0}: a number of heads is an integer"),
    ],
)
def test_an_error_in_the_space_is_explained(space, message):
    with pytest.raises(UserError, match=message):
        parse(space)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        ({"seed": -1}, "model.draw.seed=-1 must be at least 0"),
        ({"mutate": {"genes": -1}}, "model.draw.mutate.genes=-1 must be at least 0"),
        ({"mutate": {"gene": 1}}, "model.draw.*gene"),
        ({"seed": "x"}, "model.draw.seed: .*x.*"),
        ({"defaults": 3}, "model.draw.defaults: "),
        ({"space": 3}, "model.draw.space: "),
    ],
)
def test_an_error_in_a_key_of_draw_is_explained(draw, message):
    with pytest.raises(UserError, match=message):
        parse_space({"space": {}, **draw}, d_model=24)


def test_the_space_is_required():
    with pytest.raises(UserError, match="space"):
        parse_space({"seed": 0}, d_model=24)
