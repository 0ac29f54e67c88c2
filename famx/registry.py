"""The table of parts: the path of a part is its name, its signature its schema.

`famx/attention/myelinated.py` with one class under `@register` is `attention=myelinated`.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import re
import sys
import typing
from collections.abc import Callable, Mapping
from inspect import Parameter
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar, overload, runtime_checkable

from famx.notation import UserError, describe_exception, suggest
from famx.validate import check_number

ROOMS = (
    *("data", "task", "decode", "frontend"),
    *("attention", "rotary", "norm", "feedforward", "layer"),
    *("schedule", "spectrum", "momentum", "optim"),
)
HOOK = "hook"
"""The room of a user's trainer hooks. It is no option: all registered hooks are used."""
LAYER_ROOMS = ("attention", "rotary", "norm", "feedforward", "layer")
CONTEXT = frozenset({*ROOMS, "causal"})
"""Parameters that the builder always passes, even if the part has defaults for them."""
PARTS: dict[str, dict[str, type]] = {}
"""Room -> name -> class."""

# kinds of parameters such as *args and **kwargs
VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
# YAML reads these as numbers, booleans or null
NOT_A_NAME = re.compile(r"nan|inf|null|true|false|yes|no|on|off|[\d.][\d.e]*")

Part = TypeVar("Part", bound=type)


@runtime_checkable
class HasTrainerDefaults(Protocol):
    """A part whose defaults in a config are made for famx's trainer, for its clipped gradients.

    The defaults of its constructor are safe in any loop.
    """

    trainer_defaults: Mapping[str, Any]


@overload
def register(part: Part) -> Part: ...
@overload
def register(part: str) -> Callable[[Part], Part]: ...
def register(part: Any) -> Any:
    """Registers the decorated class under the path of its module, `famx.<room>.<name>`.

    Outside the package the room is an argument, `@register("attention")`, and the name of the
    file is the name of the part. The signature is the only schema: a parameter with a default is a
    hyperparameter, set from config; one without a default, or named after a room, is context that
    the builder passes.

    Raises:
        UserError: the room or the name cannot be used, or `part` is no class.
    """
    if isinstance(part, str):
        return functools.partial(_register_outside, part)
    # a part of the package: `famx.<room>.<name>`
    package, *path = part.__module__.split(".")
    if package != "famx":
        raise UserError(
            "outside the package a part names its room, as in "
            f'@register("attention"): {inspect.getfile(part)}'
        )
    room, name = path
    return _add(room, name, part)


def _register_outside(room: str, part: Any) -> Any:
    return _add(room, Path(inspect.getfile(part)).stem, part)


def _add(room: str, name: str, part: Any) -> Any:
    # `part` is Any because users may decorate anything
    file = inspect.getfile(part)
    if room not in (*ROOMS, HOOK):
        raise UserError(f"{part.__name__} registers in the room {room!r}{suggest(room, ROOMS)}")
    if not inspect.isclass(part):
        raise UserError(f"@register takes a class, but {part.__name__} is a {type(part).__name__}")
    if NOT_A_NAME.fullmatch(name.lower()):
        raise UserError(f"a part cannot be named {name}, YAML reads it as a value; rename {file}")
    if name == "default":
        raise UserError(
            f"a part cannot be named {name}, which stands for the choice of the task or the "
            f"optimizer; rename {file}"
        )
    registered = PARTS.setdefault(room, {}).get(name)
    # loading a file twice registers the same class twice, which is no conflict
    if registered is not None and _origin(registered) != _origin(part):
        existing = f"{registered.__module__}.{registered.__name__}"
        raise UserError(f"{room}={name} is already {existing}; rename {file}")
    PARTS[room][name] = part
    return part


def _origin(part: type) -> tuple[str, str]:
    return inspect.getfile(part), part.__name__


def build(room: str, config: Mapping[str, Any], **context: Any) -> Any:
    """Builds the part that `config["name"]` names.

    Args:
        room: room of the part; its base class documents the returned object.
        config: `name`, and those hyperparameters that differ from their defaults.
        context: arguments that the part may name in its signature.

    Raises:
        UserError: the part or hyperparameter does not exist, or the part rejects a value.
    """
    # hyperparameters from the config
    part = resolve(room, config)
    known = hyperparameters(part)
    arguments = {**_trainer_defaults(part), **_settings(config)}
    for key, value in arguments.items():
        check_number(f"{room}.{key}", value)
        # YAML has no tuples
        if isinstance(value, list) and isinstance(known[key].default, tuple):
            arguments[key] = tuple(value)
    # a part reports a wrong value by ValueError
    try:
        return part(**select_context(part, context), **arguments)
    except ValueError as error:
        raise UserError(f"{room}={config['name']}: {error}") from error


def resolve(room: str, config: Mapping[str, Any]) -> type[Any]:
    """Returns the class that `config["name"]` names, after a check of the other keys.

    Raises:
        UserError: the part or hyperparameter does not exist, or a tuple has the wrong size.
    """
    name = config["name"]
    part = get(room, name)
    known = hyperparameters(part)
    for key, value in _settings(config).items():
        if key not in known:
            raise UserError(f"{room}={name} has no {room}.{key}{suggest(key, known)}")
        size = _tuple_size(known[key])
        if size is not None and isinstance(value, list | tuple) and len(value) != size:
            raise UserError(
                f"{room}.{key}={value} must have {size} values, like its default "
                f"{known[key].default}"
            )
    return part


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the hyperparameters in the config of a part."""
    return {key: value for key, value in config.items() if key != "name"}


def _tuple_size(parameter: Parameter) -> int | None:
    """Returns the size of a tuple such as `tuple[float, float]`; None if any size is allowed."""
    items = typing.get_args(parameter.annotation)
    if not isinstance(parameter.default, tuple) or not items or ... in items:
        return None
    return len(items)


def select_context(part: Callable[..., Any], context: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the items of the context that a part's signature names, or all for a `**` parameter.

    Raises:
        UserError: a parameter has no default and is not in the context.
    """
    parameters = inspect.signature(part).parameters
    for parameter in parameters.values():
        required = parameter.default is Parameter.empty and parameter.kind not in VARIADIC
        if required and parameter.name not in context:
            available = ", ".join(context) or "nothing"
            raise UserError(
                f"{part.__name__}.__init__ has a required argument {parameter.name}, which no "
                f"builder passes (available: {available}); give it a default to make it a "
                "hyperparameter"
            )
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(context)
    return {key: value for key, value in context.items() if key in parameters}


def get(room: str, name: str) -> type[Any]:
    """Returns the class registered as `name` in `room`.

    Raises:
        UserError: there is no such room or part.
    """
    if name not in names(room):
        raise UserError(f"{room}={name}: no such part{suggest(name, names(room))}")
    return PARTS[room][name]


def names(room: str) -> list[str]:
    """Returns the sorted names of the parts of a room.

    Raises:
        UserError: there is no such room.
    """
    if room not in ROOMS:
        raise UserError(f"{room}: no such room{suggest(room, ROOMS)}")
    load(f"famx.{room}")
    return sorted(PARTS.get(room, {}))


def room_of(cls: type) -> str | None:
    """Returns the room of a registered class, or that of the module which defines it, if any."""
    for room, parts in PARTS.items():
        if cls in parts.values():
            return room
    # not a part but a module inside one
    package, room, *_ = [*cls.__module__.split("."), ""]
    return room if package == "famx" and room in ROOMS else None


def hyperparameters(part: type) -> dict[str, Parameter]:
    """Returns the parameters that a config may set, with their defaults in a config.

    See `constructor_parameters` and `HasTrainerDefaults`.
    """
    presets = _trainer_defaults(part)
    parameters = {}
    for name, parameter in constructor_parameters(part).items():
        if _is_hyperparameter(parameter):
            default = presets.get(name, parameter.default)
            parameters[name] = parameter.replace(default=default)
    return parameters


def _trainer_defaults(part: type) -> Mapping[str, Any]:
    return part.trainer_defaults if isinstance(part, HasTrainerDefaults) else {}


def constructor_parameters(part: type) -> dict[str, Parameter]:
    """Returns all parameters with which a part can be built.

    They are the parameters of the class's constructor and, as long as constructors pass on
    `**context`, those of the constructors of its base classes.
    """
    parameters: dict[str, Parameter] = {}
    for cls in inspect.getmro(part):
        # inherited constructors are read where they are defined
        if "__init__" not in vars(cls):
            continue
        # mypy warns of subclasses with another `__init__`, but `cls` itself defines this one
        _, *signature = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
        # the parameters of a base class come first, those of the class replace them
        parameters = {p.name: p for p in signature} | parameters
        if not any(p.kind is Parameter.VAR_KEYWORD for p in signature):
            break
    return parameters


def _is_hyperparameter(parameter: Parameter) -> bool:
    return parameter.default is not Parameter.empty and parameter.name not in CONTEXT


@functools.cache
def load(package: str) -> None:
    """Imports the modules of a room (`famx.attention`) or of all rooms (`famx`), to register parts.

    Parts of installed packages are imported too.
    """
    rooms = [package]
    if package == "famx":
        rooms = [f"famx.{room}" for room in ROOMS]
    for room in rooms:
        folder = importlib.import_module(room).__path__
        for module in pkgutil.iter_modules(folder, f"{room}."):
            importlib.import_module(module.name)
    load_entry_points()


@functools.cache
def load_entry_points() -> None:
    """Imports the modules that installed packages name as entry points of the group `famx.parts`.

    Raises:
        UserError: one of them cannot be imported.
    """
    for point in importlib.metadata.entry_points(group="famx.parts"):
        try:
            point.load()
        except (Exception, SystemExit) as error:
            reason = error if isinstance(error, UserError) else describe_exception(error, "")
            raise UserError(
                f"the entry point famx.parts {point.name} = {point.value} cannot be loaded: "
                f"{reason}"
            ) from error


def load_file(path: str | Path) -> list[tuple[str, str]]:
    """Runs a user's file, whose parts are registered under the file's name.

    Returns:
        Room and name of each part.

    Raises:
        UserError: there is no such file, it cannot be run, or it registers no part.
    """
    path = Path(path).resolve()
    if path.is_dir():
        raise UserError(f"{path} is a folder, give one file")
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    # a file may register several parts, in any rooms
    module = _run_file(path)
    registered = [
        (room, name)
        for room, parts in PARTS.items()
        for name, part in parts.items()
        if part.__module__ == module.__name__
    ]
    if not registered:
        raise UserError(
            f"{path} registers no part: decorate its class with "
            '@register("attention") or another room'
        )
    return registered


def _run_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"famx_parts.{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # `inspect.getfile` looks up the file of a class by its module
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    # a file may end the process
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} cannot be run: {describe_exception(error, path)}") from error
    return module
