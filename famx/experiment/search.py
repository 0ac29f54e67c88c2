"""Models drawn by a seed, layer by layer, from a declared space of parts and hyperparameters, and mutated (seed.md)."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from rich.table import Table

from famx.config.schema import complete_choice
from famx.model import build_layer, layer_choice, layer_choices
from famx.notation import UserError
from famx.registry import LAYER_ROOMS, get, names, suggest
from famx.seeding import numpy_rng

TRIES = 200  # draws of a layer, or of a gene, until one can be built

Layer = dict[str, Any]
Space = dict[str, Any]


def sample_layers(config: Mapping[str, Any]) -> dict[str, Any]:
    """`layers` that `model.draw` of a composed config describes, those of `model.layers` where it lists some.

    Beside them `drawn`, what they were drawn from, where nothing is called `usual`.

    A gene is a number of heads, the part of a room, or a hyperparameter of that part. Each value is a function of the
    seed, the layer and the gene alone, so a change of one gene's choices leaves the others as they were. A layer that
    cannot be built is never drawn: all its genes are drawn anew.

    Raises:
        UserError: the space names what does not exist, or nothing that it holds can be built.
    """
    draw = _declared(config["model"]["draw"])
    space = _space(draw["space"], config["model"]["d_model"])
    if config["model"].get("layers") is None:
        layers = [
            _layer(config, space, draw["seed"], i) for i in range(config["model"]["n_layers"])
        ]
    else:
        layers = layer_choices(config)
    return {"layers": _mutated(config, space, layers, **draw["mutate"]), "drawn": draw}


def layer_table(config: Mapping[str, Any]) -> Table:
    """A row a layer: its heads, the part of each room, and what is set otherwise than by default."""
    shown = Table(title="layers", title_justify="left")
    for column in ("", "heads", *LAYER_ROOMS):
        shown.add_column(column)
    for i, choice in enumerate(layer_choices(config)):
        shown.add_row(
            str(i), str(choice["n_heads"]), *(_told(room, choice[room]) for room in LAYER_ROOMS)
        )
    return shown


def _told(room: str, choice: Mapping[str, Any]) -> str:
    usual = complete_choice(room, {"name": choice["name"]})
    return " ".join(
        [
            choice["name"],
            *(f"{key}={value}" for key, value in choice.items() if value != usual[key]),
        ]
    )


def _declared(draw: Any) -> dict[str, Any]:
    """Seed, mutate and space, the numbers checked; what the space calls usual is as `usual` beside it says."""
    if (
        not isinstance(draw, Mapping)
        or draw.keys() != {"seed", "mutate", "space", "usual"}
        or not all(isinstance(draw[key], Mapping) for key in ("mutate", "usual"))
        or draw["mutate"].keys() != {"seed", "genes"}
    ):
        told = ", ".join(draw) if isinstance(draw, Mapping) else draw
        raise UserError(
            f"model.draw has {told}, where it needs seed, mutate: {{seed, genes}}, space, and usual"
        )
    seed, mutate, space = draw["seed"], dict(draw["mutate"]), draw["space"]
    for key, value in (
        {"seed": seed} | {f"mutate.{key}": value for key, value in mutate.items()}
    ).items():
        if type(value) is not int or value < 0:
            raise UserError(f"model.draw.{key}={value} is not a whole number, 0 or more")
    if not isinstance(space, Mapping):
        raise UserError(f"model.draw.space={space} is not a mapping from rooms to their parts")
    space = {
        room: draw["usual"].get(room, parts) if parts == "usual" else parts
        for room, parts in space.items()
    }
    return {"seed": seed, "mutate": mutate, "space": space}


def _space(declared: Mapping[str, Any], d_model: int) -> Space:
    """The space with every room as part -> hyperparameter -> values, all of them checked, and heads that divide."""
    space: Space = {}
    for room, parts in declared.items():
        where = f"model.draw.space.{room}"
        if room == "n_heads":
            space[room] = _heads(where, parts, d_model)
            continue
        if room not in LAYER_ROOMS:
            raise UserError(
                f"{where}: a layer has no {room}{suggest(room, ('n_heads', *LAYER_ROOMS))}"
            )
        parts = names(room) if parts == "all" else parts
        listed = isinstance(parts, list) and all(isinstance(name, str) for name in parts)
        if not (listed or isinstance(parts, Mapping)) or not parts:
            raise UserError(
                f"{where}={parts} is neither all, nor a list of parts, nor their hyperparameters by part"
            )
        parts = dict.fromkeys(parts) if listed else parts
        space[room] = {
            name: _values(f"{where}.{name}", room, name, values) for name, values in parts.items()
        }
    return space


def _values(where: str, room: str, name: str, declared: Any) -> dict[str, Any]:
    """The values of each hyperparameter of a part; none where nothing is declared."""
    complete_choice(room, {"name": name})
    if not isinstance(declared, Mapping | None) or "name" in (declared or ()):
        raise UserError(f"{where}={declared} is not a mapping from hyperparameters to their values")
    values = dict(declared or {})
    for key, options in values.items():
        for value in _bounds(f"{where}.{key}", options):
            complete_choice(room, {"name": name, key: value})
    return values


def _heads(where: str, options: Any, d_model: int) -> list[int]:
    """The numbers of heads that divide `d_model`."""
    found = _bounds(where, options)
    if not all(type(n) is int and n > 0 for n in found):
        raise UserError(f"{where}={options}: a number of heads is a whole number above 0")
    if isinstance(options, Mapping):
        found = list(range(found[0], min(found[1], d_model) + 1))
    if not any(d_model % n == 0 for n in found):
        raise UserError(f"{where}={options}: none of them divides d_model={d_model}")
    return [n for n in found if d_model % n == 0]


def _bounds(where: str, options: Any) -> list[Any]:
    """The values of a list, the ends of a range, the one value of a constant."""
    if isinstance(options, Mapping):
        ends = [options.get("low"), options.get("high")]
        numbers = all(isinstance(end, int | float) and abs(end) < 2**63 for end in ends)
        if options.keys() != {"low", "high"} or not numbers:
            raise UserError(
                f"{where}={dict(options)} is not a range, such as {{low: 0.1, high: 0.3}}"
            )
        if ends[0] > ends[1]:
            raise UserError(f"{where}: low={ends[0]} is above high={ends[1]}")
        return ends
    if options == []:
        raise UserError(f"{where} is an empty list, with nothing to choose")
    return options if isinstance(options, list) else [options]


def _pick(options: Any, *place: Any) -> Any:
    """One of a list, a number of a range (whole if its ends are), or the constant itself; a function of the place."""
    random = numpy_rng(*place)
    if not isinstance(options, Mapping):
        listed = options if isinstance(options, list) else [options]
        return listed[random.integers(len(listed))]
    low, high = options["low"], options["high"]
    if isinstance(low, int) and isinstance(high, int):
        return int(random.integers(low, high + 1))
    # four digits are enough, and can be read
    return min(max(float(f"{random.uniform(low, high):.4g}"), low), high)


def _part(
    parts: Mapping[str, Mapping], room: str, name: str, seed: int, purpose: str, attempt: int
) -> Layer:
    """A named part of a room with hyperparameters drawn."""
    values = parts[name].items()
    return {"name": name} | {
        key: _pick(options, seed, f"{purpose} {room}.{name}.{key}", attempt)
        for key, options in values
    }


def _layer(config: Mapping[str, Any], space: Space, seed: int, i: int) -> Layer:
    """The first drawing of the i-th layer that can be built."""
    refusal = None
    for attempt in range(TRIES):
        own: Layer = {}
        for room, options in space.items():
            value = _pick(
                options if room == "n_heads" else sorted(options),
                seed,
                f"layer {i} {room}",
                attempt,
            )
            own[room] = (
                value
                if room == "n_heads"
                else _part(options, room, value, seed, f"layer {i}", attempt)
            )
        choice = layer_choice(config, own)
        if (refusal := _refusal(config, choice)) is None:
            return choice
    raise UserError(
        f"model.draw: none of {TRIES} drawings of layer {i} can be built; the last: {refusal}"
    )


def _refusal(config: Mapping[str, Any], choice: Layer) -> UserError | None:
    """Why a layer cannot be built."""
    causal = get("task", config["task"]["name"]).causal
    try:
        # for real, since not every part can be built without data; what is random after this must not depend on it
        with torch.random.fork_rng(devices=()):
            build_layer(choice, config["model"]["d_model"], causal)
    except UserError as error:
        return error
    return None


def _mutated(
    config: Mapping[str, Any], space: Space, layers: list[Layer], seed: int, genes: int
) -> list[Layer]:
    """The layers with so many genes of other values, each in a room of a layer of its own."""
    layers, changed = list(layers), set()
    for k in range(genes):
        places = [(i, gene) for i, layer in enumerate(layers) for gene in _genes(space, layer)]
        places = [(i, gene) for i, gene in places if (i, gene.partition(".")[0]) not in changed]
        for attempt in range(TRIES if places else 0):
            i, gene = _pick(places, seed, f"mutation {k}", attempt)
            other = _changed(config, space, layers[i], gene, seed, f"mutation {k}", attempt)
            if other != layers[i] and _refusal(config, other) is None:
                break
        else:
            raise UserError(f"model.draw.mutate.genes={genes}: in this space only {k} can change")
        layers[i] = other
        changed.add((i, gene.partition(".")[0]))
    return layers


def _genes(space: Space, layer: Layer) -> Iterable[str]:
    """What of a layer can take another value."""
    for room, options in space.items():
        if room == "n_heads":
            if set(options) - {layer[room]}:
                yield room
            continue
        name = layer[room]["name"]
        if set(options) - {name}:
            yield room
        for key, values in options.get(name, {}).items():
            if any(value != layer[room][key] for value in _bounds(key, values)):
                yield f"{room}.{key}"


def _changed(
    config: Mapping[str, Any],
    space: Space,
    layer: Layer,
    gene: str,
    seed: int,
    purpose: str,
    attempt: int,
) -> Layer:
    """The layer with one gene drawn anew; a part that changes brings hyperparameters of its own."""
    room, _, key = gene.partition(".")
    if room == "n_heads":
        own: Any = _pick(space[room], seed, f"{purpose} {gene}", attempt)
    elif key:
        name = layer[room]["name"]
        own = layer[room] | {key: _pick(space[room][name][key], seed, f"{purpose} {gene}", attempt)}
    else:
        others = sorted(set(space[room]) - {layer[room]["name"]})
        name = _pick(others, seed, f"{purpose} {gene}", attempt)
        own = _part(space[room], room, name, seed, purpose, attempt)
    return layer_choice(config, layer | {room: own})
