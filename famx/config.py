"""From a part's signature to a checked Hydra option: `attention=myelinated attention.sparsity_threshold=0.2`."""

import dataclasses
import enum
import functools
import hashlib
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf, ValidationError
from omegaconf.errors import OmegaConfBaseException

from famx.notation import UserError
from famx.registry import PARTS, hyperparameters, load, load_file, named, nearest

ROOT = Path(__file__).parent
CONF = next(folder for folder in (ROOT.parent / "conf", ROOT / "conf") if (folder / "train.yaml").is_file())

# "what the optimizer wears", "what the task reads": rooms whose choice another part may leave to
USUAL = ("momentum", "spectrum", "frontend", "data")


def publish(**sections: type) -> None:
    """Stores the schema of every registered part under its room and name, and of each named section (a dataclass)."""
    load("famx")
    store = ConfigStore.instance()
    for room, parts in PARTS.items():
        for name, part in parts.items():
            store.store(group=room, name=name, node=schema(part, name))
    for room in USUAL:
        store.store(group=room, name="usual", node={"name": "usual"})
    for section, fields in sections.items():
        checked = [(f.name, _checked(typing.get_type_hints(fields)[f.name]), f) for f in dataclasses.fields(fields)]
        store.store(group=section, name="default", node=dataclasses.make_dataclass(f"{section}_config", checked))


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


def plain(node: Any) -> Any:
    """The node as ordinary Python values: interpolations resolved, choices as their words."""
    return OmegaConf.to_container(node, resolve=True, enum_to_str=True)


def complete(room: str, choice: Mapping[str, Any]) -> dict[str, Any]:
    """A part's name and all its hyperparameters: those of `choice`, checked, and the defaults of the others.

    Raises:
        UserError: no such part or hyperparameter, or a value of another type.
    """
    part = named(room, choice)
    try:
        return plain(OmegaConf.merge(OmegaConf.structured(schema(part, choice["name"])), dict(choice)))
    except OmegaConfBaseException as error:
        told = re.sub(r" (full_key|object_type).*", "", re.sub(r"\s+", " ", str(error)))
        raise UserError(f"{room}={choice['name']}: {room}.{error.key}: {told}") from error


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
    if origin in (typing.Union, types.UnionType) and len(arguments) == 2 and type(None) in arguments:
        return _checked(next(a for a in arguments if a is not type(None))) | None
    try:
        OmegaConf.structured(dataclasses.make_dataclass("probe", [("x", hint, MISSING)]))
    except (ValidationError, TypeError):
        return Any
    return hint


def argument(key: str, words: list[str] | None = None) -> str | None:
    """The value of `key=...` among the command line's words, read before Hydra composes; None when not given."""
    found = [
        word.partition("=")[2]
        for word in (sys.argv[1:] if words is None else words)
        if word.lstrip("+").startswith(f"{key}=")
    ]
    return found[-1] if found else None


def retell(error: Exception, config: Mapping[str, Any]) -> UserError:
    """Hydra's and OmegaConf's own errors in one sentence; `config` is the composition without the words at fault."""
    told = re.sub(r"\s+", " ", str(error)).strip()
    cause = re.sub(r"\s+", " ", str(error.__cause__ or "")).strip()
    if options := getattr(error, "options", None):
        room, _, name = error.missing_cfg_file.rpartition("/")
        return UserError(f"{room}={name}: no such part{nearest(name, [o for o in options if o != 'usual'])}")
    if match := re.search(r"Could not (?:override|append to|delete) '?([\w.@/]+)'?", told):
        *path, key = match[1].split(".")
        node: Any = config
        for step in path:
            node = node.get(step, {}) if isinstance(node, Mapping) else {}
        known = [k for k in node if k != "name"] if isinstance(node, Mapping) else []
        owner = f"{path[0]}={node['name']}" if path and "name" in node else ".".join(path) or "famx"
        return UserError(f"{owner} has no {match[1]}{nearest(key, known)}")
    if match := re.search(r"override ([\w.]+)=(.*?) ?: (.*)", f"{told} : {cause}"):
        reason = re.sub(r" full_key:.*", "", match[3])
        return UserError(f"{match[1]}={match[2]}: {reason}")
    return UserError(told)


def verb(main: Callable[[], int]) -> typing.NoReturn:
    """Runs a command: exit status 0 done, 2 the user's mistake in one sentence, 130 on Ctrl-C, 1 a fault of famx.

    `FAMX_DEBUG=1` shows the traceback of a mistake too.
    """
    try:
        status = main()
    except UserError as error:
        if os.environ.get("FAMX_DEBUG") == "1":
            raise
        print(f"famx: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        # whoever read the output (`| head`) has enough; python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    sys.exit(status)


def own_parts(words: list[str], run: str | Path | None = None) -> list[dict[str, str]]:
    """Registers the files that `famx_parts=[...]` names among the words, before anything is composed.

    Args:
        run: a run that is loaded: its own parts must be given again, unchanged.

    Returns:
        Their names and digests, which is all that a run stores of them.

    Raises:
        UserError: a file is missing, registers nothing, or is not what the run was trained with.
    """
    value = argument("famx_parts", words)
    files = [Path(item) for item in yaml.safe_load(value)] if value else []
    given = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}
    stored = Path(run or "") / "config.yaml"
    for part in yaml.safe_load(stored.read_text()).get("famx_parts", []) if run and stored.is_file() else []:
        name = part["file"]
        if given.get(name) != part["sha256"]:
            state = "has changed since" if name in given else "is not given"
            raise UserError(f"{run} was trained with {name}, which {state}: pass famx_parts=[{name}] as it was")
    for file in files:
        load_file(file)
    return [{"file": name, "sha256": digest} for name, digest in given.items()]
