"""One table of named parts. A part's path is its name: famx/attention/myelinated.py is `attention=myelinated`."""

import difflib
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from famx.notation import UserError
from famx.validate import check_number

LAYER_ROOMS = (
    "attention",
    "rotary",
    "norm",
    "feedforward",
    "layer",
)  # the rooms that a layer is made of


PARTS: dict[str, dict[str, type]] = {}
ROOMS = (
    *("data", "task", "frontend", "attention", "rotary", "norm", "feedforward", "layer"),
    *("schedule", "spectrum", "momentum", "optim"),
)
# what a builder decides even where the part has a default for use without one
CONTEXT = frozenset({*ROOMS, "causal"})


def register(part: type | str) -> Any:
    """Adds the decorated class to the table, under its module's path: `famx.<room>.<name>`.

    Outside the package the room is named, `@register("attention")`, and the file's stem is the part's name.
    The signature is the only schema: a parameter with a default is a hyperparameter, set from config;
    one without (or named after a room) is context, passed by whoever builds it.
    """
    if isinstance(part, str):
        return lambda cls: _add(part, Path(inspect.getfile(cls)).stem, cls)
    package, *place = part.__module__.split(".")
    if package != "famx":
        raise UserError(
            f'outside the package a part names its room, @register("attention"): {inspect.getfile(part)}'
        )
    return _add(*place, part)


def _add(room: str, name: str, part: Any) -> type:
    if room not in ROOMS:
        raise UserError(f"{part.__name__} registers in the room {room!r}{suggest(room, ROOMS)}")
    if not inspect.isclass(part):
        raise UserError(f"@register takes a class, but {part.__name__} is a {type(part).__name__}")
    if re.fullmatch(r"nan|inf|null|true|false|[\d.][\d.e]*", name.lower()):
        raise UserError(
            f"{room}={name} would be read as a value, not as a name: rename {inspect.getfile(part)}"
        )
    other = PARTS.setdefault(room, {}).get(name)
    if other is not None and (inspect.getfile(other), other.__name__) != (
        inspect.getfile(part),
        part.__name__,
    ):
        raise UserError(
            f"{room}={name} is {other.__module__}.{other.__name__} already, rename {inspect.getfile(part)}"
        )
    PARTS[room][name] = part
    return part


def build(room: str, config: Mapping[str, Any], **context: Any) -> Any:
    """Builds the part that `config["name"]` names, from its hyperparameters and what of the context it asks for.

    Raises:
        UserError: no such part or hyperparameter, or the part refuses a value.
    """
    part = resolve(room, config)
    known = hyperparameters(part)
    hyper = {key: value for key, value in config.items() if key != "name"}
    for key, value in hyper.items():
        check_number(f"{room}.{key}", value)
        if isinstance(known[key].default, tuple) and isinstance(value, list):
            hyper[key] = tuple(value)  # configs have no tuples
    try:
        return part(**select_context(part, context), **hyper)
    except ValueError as error:
        raise UserError(f"{room}={config['name']}: {error}") from error


def resolve(room: str, config: Mapping[str, Any]) -> type:
    """The class that `config["name"]` names, whose other keys must be its hyperparameters."""
    part = get(room, config["name"])
    known = hyperparameters(part)
    for key in config:
        if key != "name" and key not in known:
            raise UserError(f"{room}={config['name']} has no {room}.{key}{suggest(key, known)}")
        items = (
            get_args(known[key].annotation)
            if key != "name" and isinstance(config[key], list | tuple)
            else ()
        )
        if (
            items
            and ... not in items
            and isinstance(known[key].default, tuple)
            and len(items) != len(config[key])
        ):
            raise UserError(
                f"{room}.{key}={config[key]} must hold {len(items)} values, as {known[key].default} does"
            )
    return part


def select_context(part: Callable[..., Any], context: Mapping[str, Any]) -> dict[str, Any]:
    """What of the context a part's signature names; all of it where the part passes it on by `**`.

    Raises:
        UserError: it names what is no context, and gives no default for it.
    """
    parameters = inspect.signature(part).parameters
    for p in parameters.values():
        if (
            p.name not in context
            and p.default is p.empty
            and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        ):
            given = ", ".join(context) or "nothing"
            raise UserError(
                f"{part.__name__} asks for {p.name}, but is given {given}; a hyperparameter needs a default"
            )
    passes_on = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {key: value for key, value in context.items() if passes_on or key in parameters}


def get(room: str, name: str) -> type:
    """The class registered as `name` in `room`."""
    if name not in names(room):
        raise UserError(f"{room}={name}: no such part{suggest(name, names(room))}")
    return PARTS[room][name]


def names(room: str) -> list[str]:
    """Sorted names of the parts of a room."""
    if room not in ROOMS:
        raise UserError(f"{room}: no such room{suggest(room, ROOMS)}")
    load(f"famx.{room}")
    return sorted(PARTS.get(room, {}))


def room_of(cls: type) -> str | None:
    """The room that a class is registered in, or else the one of the package's rooms whose module it is of."""
    package, room, *_ = [*cls.__module__.split("."), ""]
    own = room if package == "famx" and room in ROOMS else None
    return next((room for room, parts in PARTS.items() if cls in parts.values()), own)


def hyperparameters(part: type) -> dict[str, inspect.Parameter]:
    """The parameters that a config may set, of the class's own signature and those it passes on to by `**`."""
    found: dict[str, inspect.Parameter] = {}
    for cls in inspect.getmro(part):
        if "__init__" not in vars(cls):
            continue
        own = list(inspect.signature(cls.__init__).parameters.values())[1:]
        found = {
            p.name: p for p in own if p.default is not p.empty and p.name not in CONTEXT
        } | found
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            break
    return found


@functools.cache
def load(package: str) -> None:
    """Imports every module under `package` (`famx`: under all its rooms) and installed ones, so that parts register."""
    for name in [f"famx.{room}" for room in ROOMS] if package == "famx" else [package]:
        for module in pkgutil.iter_modules(importlib.import_module(name).__path__, f"{name}."):
            importlib.import_module(module.name)
    load_entry_points()


@functools.cache
def load_entry_points() -> None:
    """Imports the modules that installed packages declare as entry points of the group `famx.parts`.

    Raises:
        UserError: one cannot be imported.
    """
    for point in importlib.metadata.entry_points(group="famx.parts"):
        try:
            point.load()
        except Exception as error:
            told = error if isinstance(error, UserError) else describe_exception(error, "")
            where = f"the entry point famx.parts {point.name} = {point.value}"
            raise UserError(f"{where} cannot be loaded: {told}") from error


def load_file(path: str | Path) -> list[tuple[str, str]]:
    """Runs a file of the user's own, whose parts register under the file's stem.

    Returns:
        Room and name of each.

    Raises:
        UserError: there is no such file, it cannot be run, or it registers no part.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise UserError(
            f"{path} is a folder, give one file" if path.is_dir() else f"there is no file {path}"
        )
    spec = importlib.util.spec_from_file_location(f"famx_parts.{path.stem}", path)
    if spec is None:
        raise UserError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # while it runs, for its classes to know their file
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} cannot be run: {describe_exception(error, path)}") from error
    own = [
        (room, name)
        for room in PARTS
        for name, part in PARTS[room].items()
        if part.__module__ == spec.name
    ]
    if not own:
        raise UserError(
            f'{path} registers no part: decorate its class with @register("attention") or another room'
        )
    return own


def describe_exception(error: Exception, file: str | Path) -> str:
    """An exception in one line: its type, the first line of its message, and the last line of `file` that led there."""
    told = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".removesuffix(": ")
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(file)
    ]
    return f"{told} ({Path(file).name}, line {lines[-1]})" if lines else told


def suggest(word: object, choices: Iterable[str]) -> str:
    """The end of a sentence that refuses `word`: what may be chosen, the likeliest first."""
    choices = sorted(choices)
    close = difflib.get_close_matches(str(word), choices, n=1, cutoff=0.5)
    listed = ", ".join(choices)
    if close:
        return f"; did you mean {close[0]}? (choices: {listed})"
    return f"; choose from {listed}" if choices else ", it has none at all"
