"""From a part's signature to a checked Hydra option: `attention=myelinated attention.sparsity_threshold=0.2`."""

import dataclasses
import enum
import functools
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf, ValidationError
from omegaconf.errors import OmegaConfBaseException

from famx.notation import UserError
from famx.registry import PARTS, hyperparameters, load, resolve

ROOT = Path(__file__).parent.parent
CONF = next(
    folder for folder in (ROOT.parent / "conf", ROOT / "conf") if (folder / "train.yaml").is_file()
)

# "what the optimizer wears", "what the task reads": rooms whose choice another part may leave to
DEFAULT_ROOMS = ("momentum", "spectrum", "frontend", "data")


def register_schemas(**sections: type) -> None:
    """Stores the schema of every registered part under its room and name, and of each named section (a dataclass)."""
    load("famx")
    store = ConfigStore.instance()
    for room, parts in PARTS.items():
        for name, part in parts.items():
            store.store(group=room, name=name, node=schema(part, name))
    for room in DEFAULT_ROOMS:
        store.store(group=room, name="usual", node={"name": "usual"})
    for section, fields in sections.items():
        store.store(group=section, name="default", node=section_schema(fields))


@functools.cache
def section_schema(fields: type) -> type:
    """A section's dataclass with its fields as OmegaConf can check them."""
    hints = typing.get_type_hints(fields)
    checked = [(f.name, _checked(hints[f.name]), f) for f in dataclasses.fields(fields)]
    return dataclasses.make_dataclass(f"{fields.__name__}_schema", checked)


@functools.cache
def schema(part: type, name: str) -> type:
    """The dataclass of a part's name and hyperparameters, read off its signature."""
    fields: list[tuple] = [("name", str, name)]
    for key, parameter in hyperparameters(part).items():
        value, hint = parameter.default, _checked(_hint(part, key))
        if inspect.isclass(hint) and issubclass(hint, enum.Enum):
            value = hint[value]
        value = list(value) if isinstance(value, tuple) else value
        fields.append((key, hint, dataclasses.field(default_factory=lambda value=value: value)))
    return dataclasses.make_dataclass(f"{name}_config", fields)


def to_plain(node: Any) -> Any:
    """The node as ordinary Python values: interpolations resolved, choices as their words."""
    return OmegaConf.to_container(node, resolve=True, enum_to_str=True)


def complete_choice(room: str, choice: Mapping[str, Any]) -> dict[str, Any]:
    """A part's name and all its hyperparameters: those of `choice`, checked, and the defaults of the others.

    Raises:
        UserError: no such part or hyperparameter, or a value of another type.
    """
    part = resolve(room, choice)
    return fill_defaults(schema(part, choice["name"]), choice, f"{room}={choice['name']}: {room}")


def fill_defaults(schema: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values, checked, and the defaults of the schema's other fields; `where` begins the sentence that refuses."""
    try:
        return to_plain(OmegaConf.merge(OmegaConf.structured(schema), dict(values)))
    except OmegaConfBaseException as error:
        told = re.sub(r" (full_key|object_type).*", "", re.sub(r"\s+", " ", str(error)))
        raise UserError(f"{where}.{error.key}: {told}") from error


def _hint(part: type, key: str) -> Any:
    """The annotation of a hyperparameter, wherever in the class's ancestry its `__init__` stands."""
    for cls in inspect.getmro(part):
        hints = typing.get_type_hints(vars(cls)["__init__"]) if "__init__" in vars(cls) else {}
        if key in hints:
            return hints[key]
    return Any


def _checked(hint: Any) -> Any:
    """The hint as OmegaConf can check it: a `Literal` as an Enum, a tuple as a list, what it cannot check as `Any`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return enum.Enum("Choice", [(word, word) for word in arguments])
    if origin in (list, tuple):
        return list[_checked(arguments[0])]
    if (
        origin in (typing.Union, types.UnionType)
        and len(arguments) == 2
        and type(None) in arguments
    ):
        return _checked(next(a for a in arguments if a is not type(None))) | None
    try:
        OmegaConf.structured(dataclasses.make_dataclass("probe", [("x", hint, MISSING)]))
    except (ValidationError, TypeError):
        return Any
    return hint


def flatten(section: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    """Every value of a section with the words that set it, but names, which are the parts' own."""
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{above}.{key}")
        elif key != "name":
            yield f"{above}.{key}", value
