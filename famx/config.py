"""From a part's signature to a checked Hydra option: `attention=myelinated attention.sparsity_threshold=0.2`."""

import argparse
import contextlib
import dataclasses
import enum
import functools
import hashlib
import inspect
import logging
import os
import re
import shlex
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf, ValidationError
from omegaconf.errors import OmegaConfBaseException

from famx import disk
from famx.notation import UserError
from famx.registry import PARTS, ROOMS, hyperparameters, load, load_file, named, names, nearest

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


def plain(node: Any) -> Any:
    """The node as ordinary Python values: interpolations resolved, choices as their words."""
    return OmegaConf.to_container(node, resolve=True, enum_to_str=True)


def complete(room: str, choice: Mapping[str, Any]) -> dict[str, Any]:
    """A part's name and all its hyperparameters: those of `choice`, checked, and the defaults of the others.

    Raises:
        UserError: no such part or hyperparameter, or a value of another type.
    """
    part = named(room, choice)
    return filled(schema(part, choice["name"]), choice, f"{room}={choice['name']}: {room}")


def filled(schema: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values, checked, and the defaults of the schema's other fields; `where` begins the sentence that refuses."""
    try:
        return plain(OmegaConf.merge(OmegaConf.structured(schema), dict(values)))
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


def command(verb: str, *words: str) -> str:
    """A command of famx to be pasted, with the own parts that this one was given."""
    own = [f"famx_parts={named}" for named in [argument("famx_parts")] if named]
    return shlex.join(["python", "-m", f"famx.{verb}", *words, *own])


def leaves(section: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    """Every value of a section with the words that set it, but names, which are the parts' own."""
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{above}.{key}")
        elif key != "name":
            yield f"{above}.{key}", value


def retell(error: Exception, config: Mapping[str, Any]) -> UserError:
    """Hydra's and OmegaConf's own errors in one sentence; `config` is the composition without the words at fault."""
    told = re.sub(r"\s+", " ", str(error)).strip()
    if match := re.search(r"Ambiguous value for argument '(.*?)'", told):
        return UserError(f"{match[1]} names several values, which only a sweep takes: give -m too")
    if word := getattr(error, "override", None):
        quoted = "a value with spaces or brackets wants quotes of its own, 'KEY=\"VALUE\"'"
        return UserError(f"{word} cannot be read as KEY=VALUE; {quoted}")
    cause = re.sub(r"\s+", " ", str(error.__cause__ or "")).strip()
    if options := getattr(error, "options", None):
        room, _, name = error.missing_cfg_file.rpartition("/")
        return UserError(f"{room}={name}: no such part{nearest(name, [o for o in options if o != 'usual'])}")
    if match := re.search(r"Could not (?:override|delete)(?: from config\.)? '([\w.@/]+)", told):
        *above, key = match[1].split(".")
        node, path = config, []
        for step in above:
            if step not in node:
                key = step  # the first that there is not
                break
            node, path = node[step] if isinstance(node[step], Mapping) else {}, [*path, step]
        place = ".".join([*path, key])
        able = [name for name, part in PARTS.get(path[0], {}).items() if key in hyperparameters(part)] if path else []
        if node.get("name") == "usual" and able:
            return UserError(f"{place} is of a part that is not chosen yet: give {path[0]}={' or '.join(able)} too")
        owner = f"{path[0]}={node['name']}" if path and "name" in node else ".".join(path) or "famx"
        if key in node:
            return UserError(f"not every {path[0]} of the sweep has {place}: {', '.join(able)} have it")
        known = [k for k in node if k != "name"] if path else [*node, "experiment"]
        return UserError(f"{owner} has no {place}{nearest(key, known)}")
    if match := re.search(r"override ([\w.]+)=(.*?) ?: (.*)", f"{told} : {cause}"):
        reason = re.sub(r" full_key:.*", "", match[3])
        return UserError(f"{match[1]}={match[2]}: {reason}")
    return UserError(told)


class Parser(argparse.ArgumentParser):
    """Tells a mistake on the command line in one sentence, as everything else does."""

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{self.prog}: {message}")


def verb(main: Callable[[], int]) -> typing.NoReturn:
    """Runs a command: exit status 0 done, 2 the user's mistake in one sentence, 130 on Ctrl-C, 1 a fault of famx.

    `FAMX_DEBUG=1` shows the traceback of a mistake too.
    """
    try:
        with _warned(), disk.told(), disk.told_by_who_waits():
            status = main()
            sys.stdout.flush()
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
    except Exception as error:
        if own := argument("famx_parts"):
            error.add_note(f"famx: python -m famx.check FILE says which law a part of {own} breaks, and where")
        raise
    sys.exit(status)


def parsed(key: str, text: str) -> Any:
    """The value of a word that Hydra does not read.

    Raises:
        UserError: it is not YAML.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{key}={text} cannot be read: {str(error).splitlines()[0]}") from error


def refuse_empty(words: list[str]) -> None:
    """Refuses words that leave a room without a part, which Hydra would take.

    Raises:
        UserError: a word deletes a room's choice, or makes it null.
    """
    for word in words:
        key, _, value = word.partition("=")
        room = key.lstrip("~+")
        if room in (*ROOMS, "model") and (key.startswith("~") or value in ("", "null")):
            parts = f", such as {room}={names(room)[0]}" if room in ROOMS else ""
            raise UserError(f"{word} leaves {room} without a choice: it needs one{parts}")


def stored(run: str | Path) -> dict[str, Any]:
    """The config of a run; what did not exist when it was written is as it is now.

    Raises:
        UserError: it is missing or damaged.
    """
    file = Path(run) / "config.yaml"
    try:
        config = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{run} is not a run: {file} cannot be read ({str(error).splitlines()[0]})") from error
    newest = yaml.safe_load((CONF / "train.yaml").read_text())
    sections = (*ROOMS, "model", "trainer", "loader")
    config = config if isinstance(config, dict) else {}
    if missing := [key for key in sections if not isinstance(config.get(key), dict)]:
        raise UserError(f"{run} is not a run: {file} has no section {', '.join(missing)}")
    return {key: value for key, value in newest.items() if key not in ("defaults", "hydra")} | config


@contextlib.contextmanager
def _warned() -> Iterator[None]:
    """Shows what is warned of, once, however often it comes up."""
    handler, told = logging.StreamHandler(), set()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("famx: %(message)s"))
    handler.addFilter(lambda record: not (record.getMessage() in told or told.add(record.getMessage())))
    logging.getLogger("famx").addHandler(handler)
    logging.getLogger("famx").setLevel(logging.WARNING)  # Hydra lets errors alone through
    try:
        yield
    finally:
        logging.getLogger("famx").removeHandler(handler)


def own_parts(words: list[str], run: str | Path | None = None) -> list[dict[str, str]]:
    """Registers the files that `famx_parts=[...]` names among the words, before anything is composed.

    Args:
        run: a run that is loaded: its own parts must be given again, unchanged.

    Returns:
        Their names and digests, which is all that a run stores of them.

    Raises:
        UserError: a file is missing, registers nothing, or is not what the run was trained with.
    """
    value = parsed("famx_parts", argument("famx_parts", words) or "[]")
    files = [Path(str(item)) for item in (value if isinstance(value, list) else [value])]
    given = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}
    used = {part["file"]: part["sha256"] for part in stored(run)["famx_parts"]} if run else {}
    for name in used:
        if given.get(name) != used[name]:
            state = "has changed since" if name in given else "is not given"
            whole = f"famx_parts=[{','.join(used)}]"
            raise UserError(f"{run} was trained with {name}, which {state}: pass {whole} as then, each with its path")
    for file in files:
        load_file(file)
    return [{"file": name, "sha256": digest} for name, digest in given.items()]
