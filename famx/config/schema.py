"""Hydra's schemas of all options: of a part from its signature, of a section from its dataclass.

`attention=myelinated attention.threshold=0.2` is checked against them.
"""

import contextlib
import copy
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
from omegaconf import MISSING, OmegaConf
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import OmegaConfBaseException

from famx.config.sections import RunConfig
from famx.config.versions import REPLACE
from famx.notation import UserError
from famx.registry import PARTS, ROOMS, hyperparameters, load, resolve

ROOT = Path(__file__).parent.parent


def config_folder(package: Path) -> Path:
    """Returns the folder of famx's configs: inside the installed package, else next to it.

    The folder next to an installed package belongs to all packages.
    """
    inside = package / "conf"
    return inside if (inside / "train.yaml").is_file() else package.parent / "conf"


CONF = config_folder(ROOT)
DEFAULT = "default"
TYPES = {"Integer": "an integer", "Float": "a number", "Boolean": "true or false"}
"""What an option must be, by the word of OmegaConf for it."""
DEFAULT_ROOMS = ("data", "decode", "frontend", "momentum", "spectrum")
"""Rooms in which `default` is a choice: the part that the task or the optimizer declares."""
RESOLVERS = frozenset({"now", "hydra", "folder_name", "oc.select"})
"""Functions that a config may call, as in `${now:%Y}`; `oc.env` would read secrets."""


def register_schemas(**sections: type) -> None:
    """Stores the schemas of the root, of every registered part, and of the sections.

    Args:
        sections: dataclasses of sections outside of the root, by name (loader, trainer).
    """
    load("famx")
    store = functools.partial(ConfigStore.instance().store, **REPLACE)
    # the first entry of conf/train.yaml
    store(name="schema", node=_root_schema(tuple(sections)))
    # the choices of each room
    for room, parts in PARTS.items():
        for name, part in parts.items():
            node = schema(part, name)
            store(group=room, name=name, node=_with_model(node, part) if room == "task" else node)
    for room in DEFAULT_ROOMS:
        store(group=room, name=DEFAULT, node={"name": DEFAULT})
    # a section is a group with one choice
    for section, fields in sections.items():
        store(group=section, name=DEFAULT, node=section_schema(fields))


def _with_model(schema: type, task: type) -> type:
    """Returns the schema of a task, which Hydra reads as a file that chooses the task's model."""
    model = getattr(task, "default_model", None)
    if model is None:
        return schema
    # the model is a choice of the root, not of the task
    defaults = [{"override /model@_global_.model": model}]
    field = dataclasses.field(default_factory=functools.partial(copy.deepcopy, defaults))
    fields: list[Any] = [("defaults", list[Any], field)]
    return dataclasses.make_dataclass(schema.__name__, fields, bases=(schema,))


def _root_schema(sections: tuple[str, ...]) -> type:
    """Returns the dataclass of a full config; parts and sections have their own schemas."""
    groups: list[Any] = [(group, Any, MISSING) for group in (*ROOMS, *sections)]
    return dataclasses.make_dataclass("Config", groups, bases=(section_schema(RunConfig),))


@functools.cache
def section_schema(section: type) -> type:
    """Returns the dataclass of a section, with types of fields that OmegaConf can check."""
    hints = typing.get_type_hints(section)
    fields: list[Any] = []
    for field in dataclasses.fields(section):
        # without the rules for numbers, which OmegaConf does not support
        hint = _checkable(hints[field.name])
        # the default of a nested section must have the type that it is checked against
        nested = inspect.isclass(hint) and dataclasses.is_dataclass(hint)
        default = dataclasses.field(default_factory=hint) if nested else field
        fields.append((field.name, hint, default))
    return dataclasses.make_dataclass(f"{section.__name__}Schema", fields)


@functools.cache
def schema(part: type, name: str) -> type:
    """Returns the dataclass of a part: its name, and its hyperparameters from the signature."""
    fields: list[Any] = [("name", str, name)]
    for key, parameter in hyperparameters(part).items():
        hint = _checkable(annotation(part, key))
        # OmegaConf has enums and lists where signatures have literals and tuples
        value = parameter.default
        if inspect.isclass(hint) and issubclass(hint, enum.Enum):
            value = hint[value]
        elif isinstance(value, tuple):
            value = list(value)
        # dataclasses take a list only from a factory
        default = dataclasses.field(default_factory=functools.partial(copy.copy, value))
        fields.append((key, hint, default))
    return dataclasses.make_dataclass(f"{name}_schema", fields)


def root_defaults() -> dict[str, Any]:
    """Returns the defaults of the options that belong to no section, and of `param_groups`."""
    config = OmegaConf.to_container(OmegaConf.structured(section_schema(RunConfig)))
    assert isinstance(config, dict)
    return {
        str(key): value for key, value in config.items() if key not in ("model", "name", "sweep")
    }


@contextlib.contextmanager
def limited_resolvers() -> Iterator[None]:
    """Lets configs call `RESOLVERS` alone: others could read the environment or run code."""
    removed = {}
    for name in BaseContainer._resolvers.keys() - RESOLVERS:
        removed[name] = BaseContainer._resolvers.pop(name)
    try:
        yield
    finally:
        BaseContainer._resolvers.update(removed)


def to_plain(node: Any) -> Any:
    """Converts a config to ordinary Python values, with interpolations resolved.

    Raises:
        UserError: a value is missing (`???`), an interpolation leads nowhere, or it calls a
            function outside of `RESOLVERS`.
    """
    try:
        with limited_resolvers():
            return OmegaConf.to_container(
                node, resolve=True, enum_to_str=True, throw_on_missing=True
            )
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {one_line(error)}") from error


def complete_choice(room: str, choice: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the name of a part with all its hyperparameters, checked and with defaults.

    Raises:
        UserError: there is no such part or hyperparameter, or a value has another type.
    """
    part: type = resolve(room, choice)
    name = choice["name"]
    return fill_defaults(schema(part, name), choice, f"{room}={name}: {room}")


def fill_defaults(schema: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the values, checked, and the defaults of the schema's other fields.

    Args:
        schema: a dataclass that `schema` or `section_schema` returned.
        where: begins the error message.

    Raises:
        UserError: there is no such field, or a value has another type.
    """
    try:
        return to_plain(OmegaConf.merge(OmegaConf.structured(schema), dict(values)))
    except OmegaConfBaseException as error:
        raise UserError(f"{where}.{error.full_key}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Returns the message of an error of Hydra or OmegaConf without its lines of details."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    # what OmegaConf says of its own classes
    text = re.sub(
        r"Invalid value assigned: \w+ is not a ListConfig.*", "it must be a list: [a,b]", text
    )
    text = re.sub(
        r"Value '(.*)' of type '\w+' could not be converted to (\w+)",
        lambda match: f"it must be {TYPES.get(match[2], match[2])}, got {match[1]}",
        text,
    )
    text = re.sub(r"Value '(.*)' is not a valid bool.*", r"it must be true or false, got \1", text)
    return re.sub(r" (full_key|reference_type|object_type)[:=].*", "", text)


def flatten(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yields the options of a section as (`prefix.key`, value), without the names of parts."""
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}.{key}")
        elif key != "name":
            yield f"{prefix}.{key}", value


def annotation(part: type, key: str) -> Any:
    """Returns the annotation of a hyperparameter, from the class whose constructor names it."""
    for cls in inspect.getmro(part):
        if "__init__" in vars(cls):
            hints = typing.get_type_hints(vars(cls)["__init__"])
            if key in hints:
                return hints[key]
    return Any


def _checkable(hint: Any) -> Any:
    """Returns a hint that OmegaConf can check.

    A `Literal` of words becomes an Enum, a tuple becomes a list, and a type that OmegaConf cannot
    check becomes `Any`.
    """
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin is typing.Literal:
        return enum.StrEnum("Choice", [(word, word) for word in arguments])
    if origin in (list, tuple):
        return list[_checkable(arguments[0])]  # type: ignore[misc]
    if origin in (typing.Union, types.UnionType):
        return _checkable_union(hint)
    if inspect.isclass(hint) and dataclasses.is_dataclass(hint):
        return section_schema(hint)
    return hint if _is_checkable(hint) else Any


def _checkable_union(hint: Any) -> Any:
    """Returns `T | None` with a checkable T; other unions unchanged, or `Any`."""
    arguments = typing.get_args(hint)
    value_types = [argument for argument in arguments if argument is not types.NoneType]
    # OmegaConf supports `T | None` for every T, other unions only of simple types
    if len(arguments) == 2 and len(value_types) == 1:
        return _checkable(value_types[0]) | None
    return hint if _is_checkable(hint) else Any


def _is_checkable(hint: Any) -> bool:
    try:
        OmegaConf.structured(dataclasses.make_dataclass("Trial", [("field", hint, MISSING)]))
    except (OmegaConfBaseException, TypeError):
        return False
    return True
