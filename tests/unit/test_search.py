"""Sampled models: always built, a function of their seed, replayed from a list, and mutated."""

import contextlib
import json
import re
from collections import Counter
from copy import deepcopy
from functools import cache

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from rich.console import Console

from famx.config.schema import CONF, register_schemas, to_plain
from famx.config.versions import VERSION_BASE
from famx.experiment import build_model, run
from famx.experiment._search_space import Range
from famx.experiment.resolve import resolve
from famx.experiment.search import layer_table, rank, sample
from famx.notation import UserError
from famx.registry import LAYER_ROOMS, PARTS, register
from famx.training.loader_config import LoaderConfig
from famx.training.trainer_config import TrainerConfig

register_schemas(trainer=TrainerConfig, loader=LoaderConfig)
SMALL = ("model.d_model=24", "model.n_layers=3", "frontend=log_mel", "frontend.channels=4")
# a part outside the package has the name of its file
NEW_PART = "test_search"


@cache
def composed(*words):
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        return to_plain(compose("train", [*SMALL, *words]))


def sampled_config(seed=0, *words, preset="drawn", mutate=(0, 0)):
    """Returns the resolved config of a preset, sampled by the seed and mutated by (seed, genes)."""
    config = deepcopy(composed(f"model={preset}", *words))
    config["model"]["draw"]["seed"] = seed
    config["model"]["draw"]["mutate"] = dict(zip(("seed", "genes"), mutate, strict=True))
    return resolve(config)


def sampled_layers(seed=0, *words, preset="drawn", mutate=(0, 0)):
    return sampled_config(seed, *words, preset=preset, mutate=mutate)["model"]["layers"]


@cache
def fifty_models():
    return [sampled_layers(seed) for seed in range(50)]


def initial_weights(config):
    torch.manual_seed(0)
    return build_model(config, vocab_size=11).state_dict()


def as_word(layers):
    """Returns the layers as a word of the command line."""
    unquoted_keys = re.sub(r'"(\w+)":', r"\1:", json.dumps(layers))
    return "model.layers=" + unquoted_keys.replace('"', "")


def differences(layers, new_layers):
    """Returns where two lists of layers differ, as (index, key of the layer)."""
    pairs = []
    for i, (layer, new_layer) in enumerate(zip(layers, new_layers, strict=True)):
        pairs.extend((i, key) for key in layer if layer[key] != new_layer[key])
    return pairs


@contextlib.contextmanager
def registered(room, part):
    register(room)(part)
    try:
        yield
    finally:
        del PARTS[room][NEW_PART]


class Extra(torch.nn.Identity):
    """Fits every layer."""

    def __init__(self):
        super().__init__()


class EvenHeads(torch.nn.Identity):
    def __init__(self, n_heads):
        if n_heads % 2:
            raise ValueError(f"n_heads={n_heads} is odd")
        super().__init__()


class MultiplesOfThree(torch.nn.Identity):
    def __init__(self, head_dim):
        if head_dim % 3:
            raise ValueError(f"head_dim={head_dim} is not a multiple of 3")
        super().__init__()


# samples


OPTIONS = ["rope", "none", 2, 2.5, [4, 8], None, True, {"low": 1}]


def test_each_option_is_equally_likely():
    n_seeds = 800
    counts = Counter(json.dumps(sample(OPTIONS, seed, "layer 0")) for seed in range(n_seeds))
    share = 1 / len(OPTIONS)
    four_sigmas = 4 * (n_seeds * share * (1 - share)) ** 0.5
    assert len(counts) == len(OPTIONS)
    for option, count in counts.items():
        assert abs(count - n_seeds * share) < four_sigmas, option


@pytest.mark.parametrize("change", [{"purpose": "layer 1"}, {"attempt": 1}])
def test_samples_of_two_purposes_or_attempts_are_independent(change):
    n_seeds = 800
    n_equal = 0
    for seed in range(n_seeds):
        arguments = {"seed": seed, "purpose": "layer 0"}
        n_equal += sample(OPTIONS, **arguments) == sample(OPTIONS, **arguments | change)
    share = 1 / len(OPTIONS)
    assert abs(n_equal - n_seeds * share) < 4 * (n_seeds * share * (1 - share)) ** 0.5


def test_a_new_option_does_not_change_the_order_of_the_others():
    for seed in range(200):
        expected = rank(OPTIONS, seed, "layer 0")
        ranking = rank(["new", *reversed(OPTIONS)], seed, "layer 0")
        ranking.remove("new")
        assert ranking == expected


def test_numbers_of_a_range_are_uniform():
    integers = Counter(sample(Range(2, 5), seed, "heads") for seed in range(2000))
    assert integers.keys() == {2, 3, 4, 5}
    assert all(abs(count - 500) < 4 * (2000 * 0.25 * 0.75) ** 0.5 for count in integers.values())
    numbers = [sample(Range(0.1, 0.3), seed, "dropout") for seed in range(2000)]
    assert 0.1 <= min(numbers) < 0.101 and 0.299 < max(numbers) <= 0.3
    assert abs(sum(numbers) / 2000 - 0.2) < 4 * 0.2 / (12 * 2000) ** 0.5
    assert sample(Range(0.12345, 0.12345), 0, "dropout") == 0.12345


@pytest.mark.parametrize("part", [Extra, EvenHeads])
def test_a_new_part_changes_only_the_layers_that_choose_it(part):
    expected = fifty_models()
    with registered("attention", part):
        models = [sampled_layers(seed) for seed in range(50)]
    n_new = 0
    for layers, new_layers in zip(expected, models, strict=True):
        chooses_new = [
            i for i, layer in enumerate(new_layers) if layer["attention"]["name"] == NEW_PART
        ]
        assert differences(layers, new_layers) == [(i, "attention") for i in chooses_new]
        n_new += len(chooses_new)
    assert n_new > 0


def test_a_new_part_changes_only_the_mutations_that_choose_it():
    single_options = {
        "n_heads": 4,
        "rotary": "[rope]",
        "norm": "[rmsnorm]",
        "feedforward": "[swiglu]",
        "layer": "[prenorm]",
    }
    words = [f"model.draw.space.{room}={options}" for room, options in single_options.items()]
    words.append(as_word(sampled_layers(7, *words)))
    expected = [sampled_layers(0, *words, mutate=(seed, 2)) for seed in range(20)]
    with registered("attention", Extra):
        mutated = [sampled_layers(0, *words, mutate=(seed, 2)) for seed in range(20)]
    n_new = 0
    for layers, new_layers in zip(expected, mutated, strict=True):
        for i, key in differences(layers, new_layers):
            assert (key, new_layers[i][key]["name"]) == ("attention", NEW_PART)
            n_new += 1
    assert n_new > 0


# layers


def test_fifty_samples_build_and_differ():
    models = fifty_models()
    config = composed()
    for layers in models:
        build_model(config | {"model": config["model"] | {"layers": layers}}, vocab_size=11)
    assert len({json.dumps(layers) for layers in models}) == 50
    for room in LAYER_ROOMS:
        names = {layer[room]["name"] for layers in models for layer in layers}
        assert len(names) > len(PARTS[room]) / 2, f"150 sampled layers have only {names} of {room}"


@pytest.mark.parametrize("preset", ["transformer", "drawn"])
def test_a_sampled_model_is_replayed_bit_for_bit_from_its_layers(preset):
    config = sampled_config(7)
    replayed = resolve(composed(f"model={preset}", as_word(config["model"]["layers"])))
    assert replayed["model"]["layers"] == config["model"]["layers"]
    expected = dict(initial_weights(config))
    weights = dict(initial_weights(replayed))
    torch.testing.assert_close(weights, expected, rtol=0, atol=0, equal_nan=True)


def test_a_resolved_config_is_not_sampled_or_mutated_again():
    words = ("model=drawn", "model.draw.seed=7", "model.draw.mutate={seed: 3, genes: 1}")
    config = resolve(composed(*words))
    assert config == sampled_config(7, mutate=(3, 1)) == resolve(config)
    assert config["model"]["drawn"]["seed"] == 7 and config["model"]["n_layers"] == 3


def test_sampling_leaves_the_global_generator_alone():
    random_state = torch.get_rng_state()
    sampled_layers(7)
    assert torch.equal(random_state, torch.get_rng_state())


def test_a_gene_depends_on_the_seed_and_on_no_other_gene():
    layers = sampled_layers(7)
    assert layers == sampled_layers(7)
    assert layers != sampled_layers(8)
    one_norm = sampled_layers(7, "model.draw.space.norm=[rmsnorm]")
    assert {key for _, key in differences(layers, one_norm)} == {"norm"}


def test_layers_that_cannot_be_built_are_never_sampled():
    only_new = f"model.draw.space.rotary=[{NEW_PART}]"
    with registered("rotary", MultiplesOfThree):
        for seed in range(10):
            for layer in sampled_layers(seed, f"model.draw.space.rotary=[{NEW_PART},rope]"):
                head_dim = 24 // layer["n_heads"]
                assert layer["rotary"]["name"] == "rope" or head_dim % 3 == 0
        with pytest.raises(UserError, match="head_dim=8 is not a multiple of 3"):
            sampled_layers(0, only_new, "model.draw.space.n_heads=[3]")
        for seed in range(5):
            for layer in sampled_layers(seed, only_new, mutate=(seed, 3)):
                assert 24 // layer["n_heads"] % 3 == 0


def test_hyperparameters_are_sampled_until_the_layer_can_be_built():
    # key_heads has to divide n_heads
    words = ("attention={grouped_query:{key_heads:{low:1,high:12}}}", "n_heads=[12]")
    layers = sampled_layers(0, *(f"model.draw.space.{word}" for word in words))
    assert all(12 % layer["attention"]["key_heads"] == 0 for layer in layers)


def test_layers_of_create_encoder_layers_are_within_their_bounds():
    config = resolve(composed("model=encoder_layers", "model.d_model=512", "model.n_layers=40"))
    layers = config["model"]["layers"]
    assert {layer["n_heads"] for layer in layers} == {4, 8}, "12 does not divide 512"
    activations = {layer["feedforward"]["activation"] for layer in layers}
    assert activations == {"relu", "gelu", "selu", "leaky_relu"}
    assert {layer["norm"]["name"] for layer in layers} == {"layernorm", "rmsnorm"}
    dropouts = [layer["layer"]["dropout"] for layer in layers]
    assert 0.1 <= min(dropouts) < 0.13 and 0.27 < max(dropouts) <= 0.3


# mutations


@pytest.mark.parametrize("seed", range(20))
def test_a_mutation_changes_exactly_one_gene(seed):
    layers = sampled_layers(7)
    mutated = sampled_layers(7, mutate=(seed, 1))
    ((i, room),) = differences(layers, mutated)
    part = layers[i][room]
    new_part = mutated[i][room]
    # of the same part, one hyperparameter
    if room != "n_heads" and part["name"] == new_part["name"]:
        assert sum(part[key] != new_part[key] for key in part) == 1


def test_mutations_reach_every_room_and_are_as_many_as_requested():
    layers = sampled_layers(7)
    rooms = set()
    for seed in range(20):
        changes = differences(layers, sampled_layers(7, mutate=(seed, 2)))
        assert len(changes) == 2
        rooms.update(key for _, key in changes)
    assert rooms == {"n_heads", *LAYER_ROOMS}


def test_more_mutations_than_genes_are_refused():
    with pytest.raises(UserError, match="genes=99: in this space only 18 genes can change"):
        sampled_layers(7, mutate=(0, 99))


def test_listed_layers_can_be_mutated():
    layers = sampled_layers(7)
    assert len(differences(layers, sampled_layers(0, as_word(layers), mutate=(0, 1)))) == 1


# tables and runs


def test_the_table_has_a_row_a_layer_with_values_that_are_not_default(capsys):
    layers = "model.layers=[{attention:myelinated},{layer:{dropout:0.25}}]"
    config = resolve(composed("layer=prenorm", layers))
    Console(width=200).print(layer_table(config))
    output = capsys.readouterr().out
    first, second = [line for line in output.splitlines() if re.match(r"│ \d", line)]
    assert "myelinated" in first and "dropout" not in first
    assert "prenorm dropout=0.25" in second


def test_a_run_prints_and_saves_its_sampled_layers_and_resumes_with_them(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be " * 99)
    words = ["model=drawn", "model.d_model=24", "model.n_layers=2", "task=lm", "data=text"]
    words += [f"data.path={text}", "data.block=16", "loader.batch_tokens=64"]
    words += ["trainer.max_steps=1", "model.draw.mutate={seed: 3, genes: 1}"]
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        config = to_plain(compose("train", words))
    config_file = tmp_path / "run/config.yaml"
    run(config, tmp_path / "run")
    saved = yaml.safe_load(config_file.read_text())
    assert saved["model"]["layers"] == resolve(config)["model"]["layers"]
    output = capsys.readouterr().out
    rows = [line for line in output.splitlines() if re.match(r"│ +\d+ +│", line)]
    for layer, row in zip(saved["model"]["layers"], rows, strict=True):
        _, heads, attention, *_ = row.split("│")[1:-1]
        assert int(heads) == layer["n_heads"] and layer["attention"]["name"] in attention
    saved["trainer"]["max_steps"] = 2
    assert "stopped_by" not in run(saved, tmp_path / "run", resume=True)
    assert yaml.safe_load(config_file.read_text())["model"] == saved["model"]


def test_a_model_that_was_not_sampled_is_not_built():
    with pytest.raises(UserError, match="model=drawn has no layers"):
        build_model(composed("model=drawn"), vocab_size=11)
