"""Drawn models: always built, the same from the same seed, replayed from their list, changed a gene at a time."""

import json
import re
from copy import deepcopy
from functools import cache

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from rich.console import Console

from famx.config.schema import CONF, register_schemas, to_plain
from famx.experiment.resolve import resolve
from famx.experiment import build_model, run
from famx.experiment.search import layer_table
from famx.notation import UserError
from famx.registry import LAYER_ROOMS, PARTS, register
from famx.training.loader import LoaderConfig
from famx.training.trainer import TrainerConfig

register_schemas(trainer=TrainerConfig, loader=LoaderConfig)
SMALL = ["model.d_model=24", "model.n_layers=3", "frontend=log_mel", "frontend.channels=4"]


@cache
def composed(*words):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return to_plain(compose("train", [*SMALL, *words]))


def drawn(seed=0, *words, preset="drawn", mutate=(0, 0)):
    """The config of a preset, drawn by the seed and mutated."""
    config = deepcopy(composed(f"model={preset}", *words))
    config["model"]["draw"]["seed"] = seed
    config["model"]["draw"]["mutate"] = dict(zip(("seed", "genes"), mutate, strict=True))
    return resolve(config)


def weights(config):
    torch.manual_seed(0)
    return build_model(config, vocab_size=11).state_dict()


def as_word(layers):
    """The list as a word of the command line."""
    return "model.layers=" + re.sub(r'"(\w+)":', r"\1:", json.dumps(layers)).replace('"', "")


def differing(one, other):
    """Where two lists of layers differ: (layer, key of the layer)."""
    return [
        (i, key)
        for i, (a, b) in enumerate(zip(one, other, strict=True))
        for key in a
        if a[key] != b[key]
    ]


def test_fifty_draws_build_and_differ():
    found = [drawn(seed) for seed in range(50)]
    for config in found:
        build_model(config, vocab_size=11)
    lists = [json.dumps(config["model"]["layers"]) for config in found]
    assert len(set(lists)) == 50
    for room in LAYER_ROOMS:
        worn = {layer[room]["name"] for config in found for layer in config["model"]["layers"]}
        assert len(worn) > len(PARTS[room]) / 2, f"of {room}, 150 drawn layers wear {worn} only"


@pytest.mark.parametrize("preset", ["transformer", "drawn"])
def test_a_drawn_model_is_replayed_bit_by_bit_from_its_list(preset):
    config = drawn(7)
    again = resolve(composed(f"model={preset}", as_word(config["model"]["layers"])))
    assert again["model"]["layers"] == config["model"]["layers"]
    first, second = weights(config), weights(again)
    torch.testing.assert_close(dict(first), dict(second), rtol=0, atol=0, equal_nan=True)


def test_a_settled_draw_is_not_drawn_or_mutated_again():
    config = resolve(
        composed("model=drawn", "model.draw.seed=7", "model.draw.mutate={seed: 3, genes: 1}")
    )
    assert config == drawn(7, mutate=(3, 1)) == resolve(config)
    assert config["model"]["drawn"]["seed"] == 7 and config["model"]["n_layers"] == 3


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    drawn(7)
    assert torch.equal(before, torch.get_rng_state())


def test_a_draw_depends_on_its_seed_and_on_no_other_gene():
    assert drawn(7) == drawn(7)
    assert drawn(7)["model"]["layers"] != drawn(8)["model"]["layers"]
    fewer = drawn(7, "model.draw.space.norm=[rmsnorm]")["model"]["layers"]
    assert {key for _, key in differing(drawn(7)["model"]["layers"], fewer)} == {"norm"}


@pytest.mark.parametrize("seed", range(20))
def test_a_mutation_changes_exactly_one_gene(seed):
    before, after = (drawn(7, mutate=(seed, genes))["model"]["layers"] for genes in (0, 1))
    ((i, key),) = differing(before, after)
    if key != "n_heads" and before[i][key]["name"] == after[i][key]["name"]:
        assert sum(value != after[i][key][k] for k, value in before[i][key].items()) == 1


def test_mutations_reach_every_gene_and_come_as_many_as_asked():
    before, places = drawn(7)["model"]["layers"], set()
    for seed in range(20):
        after = drawn(7, mutate=(seed, 2))["model"]["layers"]
        changed = differing(before, after)
        assert len(changed) == 2
        places |= {key for _, key in changed}
    assert places == {"n_heads", *LAYER_ROOMS}


def test_a_given_list_can_be_mutated():
    layers = drawn(7)["model"]["layers"]
    after = drawn(0, as_word(layers), mutate=(0, 1))["model"]["layers"]
    assert len(differing(layers, after)) == 1


ACTIVATIONS = ["gelu", "relu", "selu", "leaky_relu", "silu", "elu", "mish"]
USUAL = {
    "n_heads": [2, 3, 4, 6, 8, 12],
    "feedforward": {
        "gelu": {"activation": ACTIVATIONS, "expansion": {"low": 2.0, "high": 4.0}},
        "gated": {"activation": ACTIVATIONS},
        "swiglu": {},
    },
}


def test_the_usual_space_is_as_if_given_and_is_kept_whole():
    config = drawn(7, mutate=(3, 1))
    given = [
        f"model.draw.space.{room}={json.dumps(parts)}".replace('"', "")
        for room, parts in USUAL.items()
    ]
    assert config == drawn(7, *given, mutate=(3, 1))
    space = dict.fromkeys(("attention", "rotary", "norm", "layer"), "all") | USUAL
    assert config["model"]["drawn"] == {
        "seed": 7,
        "mutate": {"seed": 3, "genes": 1},
        "space": space,
    }


@pytest.mark.parametrize(
    ("preset", "room", "given"),
    [
        *(("drawn", "n_heads", given) for given in (4, [4, 8], {"low": 2, "high": 8})),
        *(
            ("encoder_layers", "norm", given)
            for given in ("all", ["rmsnorm"], {"rmsnorm": {"eps": 0.001}})
        ),
        *(
            ("drawn", "feedforward", given)
            for given in (
                "all",
                ["swiglu"],
                {"gelu": {"activation": "relu"}},
                {"swiglu": {"expansion": [1, 2]}},
            )
        ),
    ],
)
def test_what_is_given_of_a_room_replaces_what_is_usual(preset, room, given):
    word = f"model.draw.space.{room}={json.dumps(given)}".replace('"', "")
    model = drawn(0, word, preset=preset)["model"]
    assert model["drawn"]["space"][room] == given
    if isinstance(given, dict) and room != "n_heads":
        assert {layer[room]["name"] for layer in model["layers"]} == set(given)


def test_a_part_without_hyperparameters_may_be_null():
    layers = drawn(7, "model.draw.space.norm={rmsnorm:null}")["model"]["layers"]
    assert layers == drawn(7, "model.draw.space.norm=[rmsnorm]")["model"]["layers"]


def test_what_cannot_be_built_is_never_drawn():
    @register("rotary")
    class Threes(torch.nn.Identity):
        def __init__(self, head_dim):
            if head_dim % 3:
                raise ValueError(f"head_dim={head_dim} is not a multiple of 3")
            super().__init__()

    name = "test_draw"  # a part outside the package has its file's name
    try:
        for seed in range(10):
            layers = drawn(seed, f"model.draw.space.rotary=[{name},rope]")["model"]["layers"]
            for layer in layers:
                head_dim = 24 // layer["n_heads"]
                assert 24 % layer["n_heads"] == 0 and (
                    layer["rotary"]["name"] == "rope" or head_dim % 3 == 0
                )
        with pytest.raises(UserError, match="head_dim=8 is not a multiple of 3"):
            drawn(0, f"model.draw.space.rotary=[{name}]", "model.draw.space.n_heads=[3]")
        after = [
            drawn(0, f"model.draw.space.rotary=[{name}]", mutate=(seed, 3)) for seed in range(5)
        ]
        assert {
            24 // layer["n_heads"] % 3 for config in after for layer in config["model"]["layers"]
        } == {0}
    finally:
        del PARTS["rotary"][name]


def test_the_seeds_own_space_stays_inside_its_bounds():
    config = resolve(composed("model=encoder_layers", "model.d_model=512", "model.n_layers=40"))
    layers = config["model"]["layers"]
    assert {layer["n_heads"] for layer in layers} == {4, 8}, "12 does not divide 512"
    assert {layer["feedforward"]["activation"] for layer in layers} == {
        "relu",
        "gelu",
        "selu",
        "leaky_relu",
    }
    assert {layer["norm"]["name"] for layer in layers} == {"layernorm", "rmsnorm"}
    dropouts = [layer["layer"]["dropout"] for layer in layers]
    assert 0.1 <= min(dropouts) < 0.13 and 0.27 < max(dropouts) <= 0.3


def test_the_table_shows_each_layer_and_what_is_not_default(capsys):
    settled = resolve(composed("model.layers=[{attention:myelinated},{layer:{dropout:0.25}}]"))
    Console(width=200).print(layer_table(settled))
    first, second = [
        line for line in capsys.readouterr().out.splitlines() if re.match(r"│ \d", line)
    ]
    assert "myelinated" in first and "prenorm dropout=0.25" in second and "dropout" not in first


def test_a_run_of_a_drawn_model_shows_and_keeps_its_list_and_goes_on_with_it(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be " * 99)
    words = [
        "task=lm",
        "data=text",
        f"data.path={text}",
        "data.block=16",
        "loader.batch=64",
        "trainer.max_steps=1",
    ]
    words += ["frontend=usual", "model.n_layers=2", "model.draw.mutate={seed: 3, genes: 1}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = to_plain(compose("train", ["model=drawn", "model.d_model=24", *words]))
    run(config, tmp_path / "run")
    written = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert written["model"]["layers"] == resolve(config)["model"]["layers"]
    shown = [
        line.split("│")[1:-1]
        for line in capsys.readouterr().out.splitlines()
        if re.match(r"│ +\d+ +│", line)
    ]
    for layer, (_, heads, attention, *_) in zip(written["model"]["layers"], shown, strict=True):
        assert int(heads) == layer["n_heads"] and layer["attention"]["name"] in attention
    written["trainer"]["max_steps"] = 2
    assert "stopped_by" not in run(written, tmp_path / "run", resume=True)
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["model"] == written["model"]


@pytest.mark.parametrize(
    ("word", "told"),
    {
        "model.draw.seed=-1": "model.draw.seed=-1 is not a whole number",
        "model.draw.mutate.genes=99": "genes=99: in this space only 18 can change",
        "+model.draw.space.nrm=all": "a layer has no nrm; did you mean norm?",
        "model.draw.space.norm=[layrnorm]": "norm=layrnorm: no such part; did you mean layernorm?",
        "model.draw.space.norm=[]": r"norm=\[\] is neither all, nor a list",
        "model.draw.space.norm=some": "norm=some is neither all, nor a list",
        "model.draw.space.norm={layernorm:{epsilon:[1]}}": "norm=layernorm has no norm.epsilon",
        "model.draw.space.norm={layernorm:{eps:[]}}": "eps is an empty list",
        "model.draw.space.norm={layernorm:{eps:[1e-3,small]}}": "Value 'small'.*could not be converted to Float",
        "model.draw.space.norm={layernorm:{eps:{low:1,top:2}}}": "is not a range, such as",
        "model.draw.space.norm={layernorm:{eps:{low:2,high:1}}}": "low=2 is above high=1",
        "model.draw.space.n_heads=[5,7]": r"n_heads=\[5, 7\]: none of them divides d_model=24",
        "model.draw.space.n_heads=[two]": "a number of heads is a whole number above 0",
        "model.draw.space.n_heads={low:2.0,high:8.0}": r"n_heads={'low': 2.0, 'high': 8.0}: a number of heads is",
        "model.draw.space.n_heads={low:30,high:90}": "none of them divides d_model=24",
        "model.draw.space.attention={topk:4}": "attention.topk=4 is not a mapping from hyperparameters",
        "model.draw.space.attention={topk:{name:[multihead]}}": "attention.topk={.*} is not a mapping from hyperparam",
        "model.draw.space.attention={topk:{3:[4]}}": "attention=topk has no attention.3; choose from keys",
        "model.draw.space.attention={topk:{keys:{low:1,high:99999999999999999999}}}": "keys={.*} is not a range",
        "model.draw.space.attention=[{topk:{}}]": r"attention=\[{'topk': {}}\] is neither all, nor a list of parts",
        "model.draw.space.attention=usual": "attention=usual is neither all, nor a list",
        "model.draw.space.norm={layernorm:{eps:{low:0.1,high:inf}}}": "norm.layernorm.eps={.*} is not a range",
        "+model.draw.space.3=all": "model.draw.space.3: a layer has no 3",
        "model.draw.space=3": "is not a mapping from rooms",
        "model.draw.usual=3": "model.draw has seed, mutate, space, usual, where it needs",
        "model.draw=3": "model.draw has 3, where it needs",
        "~model.draw.mutate": "model.draw has seed, space, usual, where it needs",
    }.items(),
)
def test_a_mistake_in_the_space_is_told(word, told):
    with pytest.raises(UserError, match=told):
        resolve(composed("model=drawn", word))


def test_a_draw_that_was_not_settled_is_not_built():
    with pytest.raises(UserError, match="model=drawn has no layers before they are drawn"):
        build_model(composed("model=drawn"), vocab_size=11)
