"""All settings of the command line, from the dataclasses and docstrings that define them."""

import inspect
import re
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, NamedTuple

import omegaconf

from famx.config.schema import annotation
from famx.config.sections import (
    DrawConfig,
    FinetuneConfig,
    ModelConfig,
    MutateConfig,
    ParamGroupConfig,
    RunConfig,
    SweepConfig,
)
from famx.registry import PARTS, hyperparameters, names
from famx.training.loader_config import LoaderConfig
from famx.training.trainer_config import TrainerConfig
from famx.validate import FINITE, Rule

SECTIONS: dict[str, tuple[str, type]] = {
    "run": ("", RunConfig),
    "finetune": ("finetune.", FinetuneConfig),
    "model": ("model.", ModelConfig),
    "model.draw": ("model.draw.", DrawConfig),
    "model.draw.mutate": ("model.draw.mutate.", MutateConfig),
    "trainer": ("trainer.", TrainerConfig),
    "loader": ("loader.", LoaderConfig),
    "param_groups": ("param_groups.KIND.", ParamGroupConfig),
    "sweep": ("sweep.", SweepConfig),
}
"""Section -> the beginning of its keys, and its dataclass."""
DESCRIBED_ROOMS = ("data", "task", "frontend")
"""Rooms whose parts are described on the page of settings; parts.md lists all rooms."""
HEADING = """\
# Settings

Every setting of `python -m famx.train KEY=VALUE`, with its type, its default and its unit. The
parts of the other rooms (`attention.*`, `optim.*`, `schedule.*`, ...) are in [Parts](parts.md).
Hydra adds `hydra.run.dir=FOLDER` (folder of a run), `hydra.sweep.dir=FOLDER` (folder of a sweep)
and `hydra/launcher=NAME`. KIND is conv, attention, embedding, norm or other. This page is written
by `python -m famx.parts --settings --write`, and a test compares the two.
"""
WORDS = {int: "integer", float: "number", bool: "true or false", str: "text", Any: "any value"}


class Setting(NamedTuple):
    """A setting of the command line.

    Args:
        key: as in `trainer.max_steps`.
        kind: its type and range in words.
        default: as it is typed.
        description: what it does, with its unit.
    """

    key: str
    kind: str
    default: str
    description: str


def settings_of(section: str) -> list[Setting]:
    """Returns the settings of a section."""
    prefix, cls = SECTIONS[section]
    return list(section_settings(cls, prefix))


def settings_page() -> str:
    """Returns the page docs/settings.md."""
    lines = [HEADING]
    for section in SECTIONS:
        lines += _table(section, settings_of(section))
    for room in DESCRIBED_ROOMS:
        for name in names(room):
            settings = list(part_settings(room, PARTS[room][name]))
            if settings:
                lines += _table(f"{room}={name}", settings)
    return "\n".join(lines)


def _table(title: str, settings: Sequence[Setting]) -> list[str]:
    """Returns the lines of a section of the page."""
    lines = [f"## {title}", "", "| setting | type | default | what it is |", "|---|---|---|---|"]
    for setting in settings:
        default = f"`{setting.default}`" if setting.default else ""
        cells = (f"`{setting.key}`", setting.kind, default, setting.description)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]


def section_settings(section: type, prefix: str) -> Iterator[Setting]:
    """Yields the settings of a dataclass; its nested sections are left out.

    Args:
        prefix: begins each key, such as `trainer.`; empty for the root.
    """
    hints = typing.get_type_hints(section, include_extras=True)
    descriptions = arguments_of(section)
    for field in fields(section):
        hint = hints[field.name]
        if not is_dataclass(hint):
            default = _typed(_default(field))
            description = descriptions.get(field.name, "")
            yield Setting(f"{prefix}{field.name}", kind_of(hint), default, description)


def part_settings(room: str, part: type) -> Iterator[Setting]:
    """Yields the settings of a part of a room."""
    descriptions = arguments_of(part)
    for name, parameter in hyperparameters(part).items():
        kind = kind_of(annotation(part, name))
        default = _typed(parameter.default)
        yield Setting(f"{room}.{name}", kind, default, descriptions.get(name, ""))


def arguments_of(cls: type) -> dict[str, str]:
    """Returns the descriptions of arguments in the docstrings of a class and its base classes."""
    descriptions: dict[str, str] = {}
    for base in reversed(inspect.getmro(cls)):
        text = inspect.cleandoc(vars(base).get("__doc__") or "")
        _, _, arguments = text.partition("\nArgs:\n")
        # until the next section, which is not indented
        arguments = re.split(r"\n(?=\S)", arguments)[0]
        for entry in re.split(r"\n(?=    \S)", f"\n{arguments}"):
            names, colon, description = entry.strip().partition(":")
            if colon:
                for name in names.split(","):
                    # as it is typed on the command line
                    text = re.sub(r"\bNone\b", "null", " ".join(description.split()))
                    descriptions[name.strip()] = text
    return descriptions


def kind_of(hint: Any) -> str:
    """Returns a type and its range in words."""
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin is Annotated:
        base, rule = arguments
        suffix = f", {rule.requirement}" if isinstance(rule, Rule) and rule is not FINITE else ""
        return kind_of(base) + suffix
    if origin is typing.Literal:
        return ", ".join(f"`{word}`" for word in arguments)
    if origin in (typing.Union, types.UnionType):
        kinds = ["null" if item is types.NoneType else kind_of(item) for item in arguments]
        return " or ".join(kinds)
    if origin in (list, tuple):
        return f"list of {kind_of(arguments[0])}s" if arguments[0] in WORDS else "list"
    return WORDS.get(hint, "mapping")


def _default(field: "Field[Any]") -> object:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else None


def _typed(value: object) -> str:
    """Returns a value as it is typed on the command line."""
    if value == omegaconf.MISSING:
        return ""
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(_typed(item) for item in value)}]"
    return str(value)
