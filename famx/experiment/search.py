"""Samples the layers of a model from a declared search space, and mutates them.

A gene is a number of heads, the part of a room, or a hyperparameter of that part. Its value is
chosen by rendezvous hashing (Thaler & Ravishankar, 1998): every option gets a random number, which
is a function of the seed, the purpose of the draw and the option's own name or JSON; the option
with the largest number wins. So all options are equally likely, the order in which they are listed
has no influence, and a value that is listed twice counts once. A new option changes only the draws
that it wins, and a removed one only those that it had won. From a range `{low, high}` a number is
sampled uniformly.

The genes of a layer are independent unless the layer of all winners cannot be built. Then each room
takes the option with the next largest number that fits the number of heads and the rooms before it
in `DEPENDENCY_ORDER`. If a number of heads has no such layer, the next number of heads is tried. If
none has one, all genes are sampled again.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from rich.table import Table

from famx.config.schema import complete_choice
from famx.experiment._search_space import (
    Options,
    Range,
    RoomOptions,
    SearchSpace,
    endpoints,
    parse_space,
)
from famx.model import build_layer, layer_choice, layer_choices
from famx.notation import UserError
from famx.registry import LAYER_ROOMS, get
from famx.seeding import numpy_rng, seed_for

# samples of a layer, or of a hyperparameter in a range, before it is given up
MAX_ATTEMPTS = 50
# an attention block contains a rotary, and a layer contains all parts
DEPENDENCY_ORDER = ("rotary", *(room for room in LAYER_ROOMS if room != "rotary"))

Config = Mapping[str, Any]
Layer = dict[str, Any]
Choice = int | dict[str, Any]
"""A number of heads, or the name and hyperparameters of a part."""
Option = TypeVar("Option")


class Gene(NamedTuple):
    """One value of a sampled model that can be mutated.

    Args:
        layer: index of the layer.
        room: `n_heads` or a room.
        key: a hyperparameter of the part; empty for the number of heads or the part itself.
    """

    layer: int
    room: str
    key: str = ""

    def __str__(self) -> str:
        return ".".join(filter(None, (f"layer {self.layer} {self.room}", self.key)))


def sample_layers(config: Config) -> dict[str, Any]:
    """Samples the layers that `model.draw` of a composed config describes, and mutates them.

    If `model.layers` lists layers, these are mutated, and none are sampled. Layers that cannot be
    built are never sampled.

    Returns:
        `layers`, the complete choice of each layer, and `drawn`, the `seed`, `mutate` and `space`
        from which they were sampled.

    Raises:
        UserError: `model.draw` is wrong, or nothing in its space can be built.
    """
    model = config["model"]
    space = parse_space(model["draw"], model["d_model"])
    if model.get("layers") is None:
        layers = [_sample_layer(config, space, i) for i in range(model["n_layers"])]
    else:
        layers = layer_choices(config)
    return {"layers": _mutate(config, space, layers), "drawn": space.record}


def layer_table(config: Config) -> Table:
    """Returns a table with one row per layer: heads, parts, and values that are not default."""
    table = Table(title="layers", title_justify="left")
    for column in ("", "heads", *LAYER_ROOMS):
        table.add_column(column)
    for i, layer in enumerate(layer_choices(config)):
        parts = [_describe_part(room, layer[room]) for room in LAYER_ROOMS]
        table.add_row(str(i), str(layer["n_heads"]), *parts)
    return table


def _describe_part(room: str, choice: Mapping[str, Any]) -> str:
    default = complete_choice(room, {"name": choice["name"]})
    words = [choice["name"]]
    for key, value in choice.items():
        if value != default[key]:
            words.append(f"{key}={value}")
    return " ".join(words)


def rank(options: Iterable[Option], seed: int, purpose: str, attempt: int = 0) -> list[Option]:
    """Orders options at random, by rendezvous hashing: the first one wins the draw.

    Removing an option does not change the order of the remaining ones.

    Args:
        options: values that JSON can hold.
        seed: seed of the draw.
        purpose: the gene; draws for different purposes are independent.
        attempt: number of earlier draws for the same purpose that could not be built.
    """

    def number(option: Option) -> int:
        name = json.dumps(option, sort_keys=True)
        return seed_for(seed, f"{purpose}: {name}", attempt)

    return sorted(options, key=number, reverse=True)


def sample(options: Options, seed: int, purpose: str, attempt: int = 0) -> object:
    """Samples a value of a list, or a number from a range; the arguments are those of `rank`.

    A range of integers gives an integer, another range a number with four significant digits.
    """
    if not isinstance(options, Range):
        return rank(options, seed, purpose, attempt)[0]
    rng = numpy_rng(seed, purpose, attempt)
    low = options.low
    high = options.high
    if isinstance(low, int) and isinstance(high, int):
        return int(rng.integers(low, high + 1))
    number = float(f"{rng.uniform(low, high):.4g}")
    # rounding may have left the range
    return min(max(number, low), high)


def why_unbuildable(config: Config, layer: Layer) -> str | None:
    """Returns why a layer cannot be built; None if it can."""
    causal = get("task", config["task"]["name"]).causal
    try:
        # Many parts check their sizes only when they are built. The random weights must not change
        # later draws of the global generator.
        with torch.random.fork_rng(devices=()):
            build_layer(layer, config["model"]["d_model"], causal)
    except UserError as error:
        return str(error)
    return None


def _sample_layer(config: Config, space: SearchSpace, i: int) -> Layer:
    """Samples the layer with index `i`.

    Raises:
        UserError: no attempt gives a layer that can be built.
    """
    reason = None
    for attempt in range(MAX_ATTEMPTS):
        # the winner of each draw
        choices = _ranked_choices(space, f"layer {i}", attempt)
        layer = layer_choice(config, {room: ranked[0] for room, ranked in choices.items()})
        reason = why_unbuildable(config, layer)
        if reason is None:
            return layer
        # the best options that fit together
        for n_heads in choices.get("n_heads", [config["model"]["n_heads"]]):
            fitted = _fit_layer(config, n_heads, choices)
            if fitted is not None:
                return fitted
    raise UserError(
        f"model.draw: none of {MAX_ATTEMPTS} samples of layer {i} can be built; the last: {reason}"
    )


def _ranked_choices(space: SearchSpace, purpose: str, attempt: int) -> dict[str, list[Choice]]:
    """Returns the choices for the heads and each sampled room, in the order of their numbers."""
    choices: dict[str, list[Choice]] = {}
    if space.n_heads is not None:
        choices["n_heads"] = list(rank(space.n_heads, space.seed, f"{purpose} n_heads", attempt))
    for room, parts in space.rooms.items():
        ranked_names = rank(parts, space.seed, f"{purpose} {room}", attempt)
        choices[room] = [
            _sample_part(parts, name, space.seed, f"{purpose} {room}", attempt)
            for name in ranked_names
        ]
    return choices


def _sample_part(
    parts: RoomOptions, name: str, seed: int, purpose: str, attempt: int = 0
) -> dict[str, Any]:
    """Returns the part `name` with sampled hyperparameters."""
    choice: dict[str, Any] = {"name": name}
    for key, options in parts[name].items():
        choice[key] = sample(options, seed, f"{purpose}.{name}.{key}", attempt)
    return choice


def _fit_layer(config: Config, n_heads: int, choices: Mapping[str, list[Choice]]) -> Layer | None:
    """Chooses room after room the first choice that can be built with the earlier rooms.

    Meanwhile later rooms have the parts that the config sets for all layers, so that a choice does
    not depend on the options of later rooms: a new attention block that does not fit the rotary is
    not chosen, and the rest of the layer does not change.

    Returns:
        The layer; None if a room has no choice that can be built.
    """
    selected: dict[str, Choice] = {"n_heads": n_heads}
    for room in DEPENDENCY_ORDER:
        if room not in choices:
            continue
        for choice in choices[room]:
            layer = layer_choice(config, selected | {room: choice})
            if why_unbuildable(config, layer) is None:
                selected[room] = choice
                break
        else:
            return None
    # the parts that the config sets for the other rooms may not fit
    layer = layer_choice(config, selected)
    return layer if why_unbuildable(config, layer) is None else None


def _mutate(config: Config, space: SearchSpace, layers: list[Layer]) -> list[Layer]:
    """Returns the layers with `space.n_mutations` genes changed, no two in a room of one layer."""
    # all genes of all layers
    mutated = list(layers)
    genes: list[Gene] = []
    for i, layer in enumerate(layers):
        genes.extend(_mutable_genes(space, layer, i))
    # in random order, the first genes that have another value with which the layer can be built
    changed: set[tuple[int, str]] = set()
    for gene in rank(genes, space.mutation_seed, "mutated gene"):
        if len(changed) == space.n_mutations:
            break
        if (gene.layer, gene.room) in changed:
            continue
        mutant = _mutate_gene(config, space, mutated[gene.layer], gene)
        if mutant is not None:
            mutated[gene.layer] = mutant
            changed.add((gene.layer, gene.room))
    if len(changed) < space.n_mutations:
        raise UserError(
            f"model.draw.mutate.genes={space.n_mutations}: in this space only {len(changed)} "
            "genes can change"
        )
    return mutated


def _mutable_genes(space: SearchSpace, layer: Layer, i: int) -> Iterator[Gene]:
    """Yields the genes of a layer that have another value in the space."""
    if space.n_heads is not None and set(space.n_heads) - {layer["n_heads"]}:
        yield Gene(i, "n_heads")
    for room, parts in space.rooms.items():
        part = layer[room]
        if parts.keys() - {part["name"]}:
            yield Gene(i, room)
        for key, options in parts.get(part["name"], {}).items():
            if any(value != part[key] for value in endpoints(options)):
                yield Gene(i, room, key)


def _mutate_gene(config: Config, space: SearchSpace, layer: Layer, gene: Gene) -> Layer | None:
    """Returns the layer with another value of one gene; None if it cannot be built with any."""
    for choice in _alternatives(space, layer[gene.room], gene):
        mutant = layer_choice(config, layer | {gene.room: choice})
        if mutant != layer and why_unbuildable(config, mutant) is None:
            return mutant
    return None


def _alternatives(space: SearchSpace, current: Choice, gene: Gene) -> Iterator[Choice]:
    """Yields other values of a gene in random order; a new part has sampled hyperparameters."""
    seed = space.mutation_seed
    purpose = f"mutation of {gene}"
    # numbers of heads
    if not isinstance(current, dict):
        yield from rank(space.n_heads or (), seed, purpose)
        return
    # other parts of the room
    parts = space.rooms[gene.room]
    name = current["name"]
    if not gene.key:
        for alternative in rank(parts.keys() - {name}, seed, purpose):
            yield _sample_part(parts, alternative, seed, purpose)
        return
    # values of a hyperparameter
    options = parts[name][gene.key]
    if isinstance(options, Range):
        values: Iterable[object] = (
            sample(options, seed, purpose, attempt) for attempt in range(MAX_ATTEMPTS)
        )
    else:
        values = rank(options, seed, purpose)
    for value in values:
        yield current | {gene.key: value}
