"""The search space that `model.draw` of a config declares, parsed and checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from famx.config.schema import complete_choice, fill_defaults, section_schema
from famx.config.sections import DrawConfig
from famx.notation import UserError, suggest
from famx.registry import LAYER_ROOMS, get, names
from famx.validate import NON_NEGATIVE, check_number

# above this, numpy cannot draw integers
MAX_NUMBER = 2**63


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, both included; integers if both ends are.

    Args:
        low: the smallest number.
        high: the largest number, not below `low`.
    """

    low: int | float
    high: int | float


Options = Sequence[object] | Range
"""The values that a hyperparameter may have."""
RoomOptions = Mapping[str, Mapping[str, Options]]
"""The parts that a room may have: part -> hyperparameter -> values."""


@dataclass(frozen=True)
class SearchSpace:
    """The layers that can be sampled, and how many genes of them are mutated.

    Args:
        seed: seed of the layers, 0 or more.
        mutation_seed: seed of the mutations, 0 or more.
        n_mutations: number of genes to mutate, 0 or more.
        n_heads: numbers of heads, all divisors of d_model; None where it is not sampled.
        rooms: options of each room that is sampled.
        record: `seed`, `mutate` and `space` as declared, for the resolved config; `default` in the
            space is replaced by the options that it stands for.
    """

    seed: int
    mutation_seed: int
    n_mutations: int
    n_heads: Sequence[int] | None
    rooms: Mapping[str, RoomOptions]
    record: Mapping[str, object]


def parse_space(draw: Mapping[str, Any], d_model: int) -> SearchSpace:
    """Parses `model.draw`.

    Args:
        draw: the fields of `DrawConfig`. Its space maps `n_heads` to numbers, and a room to `all`,
            a list of parts, or part -> hyperparameter -> values. Values are a list, a range
            `{low, high}`, or a constant. `default` stands for the entry of `defaults`.
        d_model: number of channels, which the numbers of heads divide.

    Raises:
        UserError: a value has another type or is outside its range, or the space names a room,
            part or hyperparameter that does not exist.
    """
    draw = fill_defaults(section_schema(DrawConfig), draw, "model.draw")
    mutate = draw["mutate"]
    check_number("model.draw.seed", draw["seed"], NON_NEGATIVE)
    check_number("model.draw.mutate", mutate, NON_NEGATIVE)

    # `default` is replaced by the entry of `defaults`
    declared = {}
    for room, options in draw["space"].items():
        is_default = options == "default"
        declared[room] = draw["defaults"].get(room, options) if is_default else options

    # options of each room
    n_heads = None
    rooms = {}
    for room, options in declared.items():
        where = f"model.draw.space.{room}"
        if room == "n_heads":
            n_heads = _parse_heads(where, options, d_model)
        elif room in LAYER_ROOMS:
            rooms[room] = _parse_room(where, room, options)
        else:
            suggestion = suggest(room, ("n_heads", *LAYER_ROOMS))
            raise UserError(f"{where}: a layer has no {room}{suggestion}")
    record = {"seed": draw["seed"], "mutate": mutate, "space": declared}
    return SearchSpace(draw["seed"], mutate["seed"], mutate["genes"], n_heads, rooms, record)


def _parse_heads(where: str, declared: object, d_model: int) -> list[int]:
    """Returns the numbers of heads that divide `d_model`."""
    # listed numbers, or the ends of a range
    options = _parse_options(where, declared)
    numbers = []
    for number in endpoints(options):
        if type(number) is not int or number < 1:
            raise UserError(f"{where}={declared}: a number of heads is an integer of at least 1")
        numbers.append(number)
    # all numbers of a range
    if isinstance(options, Range):
        low, high = numbers
        numbers = list(range(low, min(high, d_model) + 1))
    divisors = [number for number in numbers if d_model % number == 0]
    if not divisors:
        raise UserError(f"{where}={declared}: no such number divides d_model={d_model}")
    return divisors


def _parse_room(where: str, room: str, declared: object) -> dict[str, dict[str, Options]]:
    """Returns the hyperparameters of each part that a room may have."""
    # a list of parts is a mapping without hyperparameters
    parts = names(room) if declared == "all" else declared
    if isinstance(parts, list) and all(isinstance(name, str) for name in parts):
        parts = dict.fromkeys(parts)
    if not isinstance(parts, Mapping) or not parts:
        raise UserError(
            f"{where}={declared} must be `all`, a list of parts, or a mapping from parts to their "
            "hyperparameters"
        )
    hyperparameters = {}
    for name, values in parts.items():
        hyperparameters[name] = _parse_part(f"{where}.{name}", room, name, values)
    return hyperparameters


def _parse_part(where: str, room: str, name: str, declared: object) -> dict[str, Options]:
    """Returns the values of each hyperparameter that is declared; None declares none."""
    # raises for a part that does not exist
    get(room, name)
    if declared is None:
        return {}
    if not isinstance(declared, Mapping) or "name" in declared:
        raise UserError(
            f"{where}={declared} must be a mapping from hyperparameters to their values"
        )
    hyperparameters = {}
    for key, values in declared.items():
        hyperparameters[key] = _parse_options(f"{where}.{key}", values)
        # raises for a hyperparameter that does not exist, or a value of another type
        for value in endpoints(hyperparameters[key]):
            complete_choice(room, {"name": name, str(key): value})
    return hyperparameters


def _parse_options(where: str, declared: object) -> Options:
    """Returns the values of a list, the range of a mapping, or a constant as a list of one."""
    if isinstance(declared, Mapping):
        return _parse_range(where, declared)
    if not isinstance(declared, list):
        return [declared]
    if not declared:
        raise UserError(f"{where} is an empty list, but needs at least one value")
    return declared


def _parse_range(where: str, declared: Mapping[str, object]) -> Range:
    low = declared.get("low")
    high = declared.get("high")
    if declared.keys() != {"low", "high"} or not _is_number(low) or not _is_number(high):
        raise UserError(
            f"{where}={dict(declared)} must be a range of two numbers, such as "
            "{low: 0.1, high: 0.3}"
        )
    if low > high:
        raise UserError(f"{where}: low={low} is above high={high}")
    return Range(low, high)


def _is_number(value: object) -> TypeGuard[int | float]:
    """True for the numbers that a range can have; false for infinity, NaN and booleans."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < MAX_NUMBER


def endpoints(options: Options) -> Sequence[object]:
    """Returns the values of a list, or both ends of a range."""
    return (options.low, options.high) if isinstance(options, Range) else options
