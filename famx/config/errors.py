"""Explains refused options in one sentence: those that Hydra refuses, and keys of famx 0.1."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import Container, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from famx.config.composition import initialized_hydra
from famx.config.other_names import elsewhere
from famx.config.overrides import override_values, parse_override
from famx.config.schema import DEFAULT, DEFAULT_ROOMS, one_line
from famx.config.words import (
    FREE_FORM,
    GROUPS,
    PRESETS,
    experiment_sweep,
    without_plus,
)
from famx.notation import UserError, suggest
from famx.registry import PARTS, ROOMS, hyperparameters

RENAMED = {
    "watch": "probe",
    "kinds": "param_groups",
    "task.units": "task.vocab_size",
    "trainer.clip": "trainer.unit_clip",
    "loader.batch": "loader.batch_seconds (speech) or loader.batch_tokens (text)",
    "model.draw.usual": "model.draw.defaults",
}
"""Options of famx 0.1 -> their current names."""
OLD_DEFAULT = "usual"
"""The value of famx 0.1 for the current value `default`."""


def explain_hydra_error(
    error: Exception, words: Sequence[str], options: Sequence[str] = ()
) -> UserError | None:
    """Explains which override Hydra refuses and why; returns None for an error of another origin.

    Hydra's messages are written for the author of a config. Here the overrides are tried one after
    the other, and the first one that is refused is explained.

    Args:
        error: the error that was raised before a run began.
        words: overrides as the user typed them.
        options: options of Hydra's command line.
    """
    with initialized_hydra(options):
        mistake = _find_mistake([without_plus(word) for word in words], options)
    # Hydra raises ValueError too
    if mistake is None and isinstance(error, HydraException | OmegaConfBaseException | ValueError):
        return UserError(": ".join(_messages(error)))
    return mistake


def _messages(error: BaseException) -> Iterator[str]:
    """Yields the messages of an error and its cause, which may be an old option in a file."""
    for cause in (error, error.__cause__):
        if cause is None:
            continue
        yield _experiment_conflict(cause) or one_line(cause)
        # Hydra's errors contain the option in a separate line
        details = re.search(r"full_key: (\S+)", str(cause))
        if details and details[1] in RENAMED:
            yield f"{details[1]} is now {RENAMED[details[1]]}"


def _experiment_conflict(error: BaseException) -> str | None:
    """Returns the message about an option of an experiment that the chosen part does not have."""
    pattern = r"In '(\S+)': .*Key '(\w+)' not in '(\w+)_schema'.*full_key: (\w+)"
    match = re.search(pattern, str(error), re.DOTALL)
    if match is None:
        return None
    file, key, part, option = match.groups()
    room = option.partition(".")[0]
    return f"{file} sets {room}.{key}, which {room}={part} does not have"


def refuse_renamed(config: Mapping[str, Any], source: str) -> None:
    """Checks that a config has no options of famx 0.1.

    Args:
        source: origin of the config, such as a run's config.yaml; begins the error message.

    Raises:
        UserError: an option or a value has another name now.
    """
    changes = [f"{old} is now {new}" for old, new in RENAMED.items() if _has_option(config, old)]
    for option in _old_defaults(config):
        changes.append(f"{option}={OLD_DEFAULT} is now {option}={DEFAULT}")
    if changes:
        raise UserError(f"{source} was written for famx 0.1: {', '.join(changes)}")


def _has_option(config: Mapping[str, Any], option: str) -> bool:
    """Returns whether a config has an option that is not a hyperparameter of its part."""
    node: Any = config
    steps = option.split(".")
    for step in steps:
        if not isinstance(node, Mapping) or step not in node:
            return False
        node = node[step]
    room = steps[0]
    if room not in ROOMS:
        return True
    # a hyperparameter of a user's part may have the same name; the part may not be loaded yet
    part = PARTS.get(room, {}).get(config[room].get("name"))
    return part is None or steps[-1] not in hyperparameters(part)


def _old_defaults(config: Mapping[str, Any]) -> Iterator[str]:
    """Yields the options whose value is the former word for `default`."""
    for room in DEFAULT_ROOMS:
        section = config.get(room)
        if isinstance(section, Mapping) and section.get("name") == OLD_DEFAULT:
            yield room
    space: Any = config
    for step in FREE_FORM.split("."):
        space = space.get(step) if isinstance(space, Mapping) else None
    if isinstance(space, Mapping):
        yield from (f"{FREE_FORM}.{room}" for room in space if space[room] == OLD_DEFAULT)


def _find_mistake(words: Sequence[str], options: Sequence[str]) -> UserError | None:
    """Returns the explanation of the first word that Hydra refuses."""
    multirun = "--multirun" in options
    if multirun:
        # the words come last, since they replace what the experiment sweeps
        sweep = experiment_sweep(words, options)
        words = [*(f"{key}={values}" for key, values in sweep.items()), *words]
    search_path = [word for word in words if word.lstrip("+").startswith("hydra.searchpath=")]
    # words that cannot be read at all
    overrides = []
    for word in words:
        override = parse_override(word)
        if override is None:
            return UserError(
                f"{word} cannot be read as KEY=VALUE; a value with spaces or brackets needs quotes "
                "of its own, 'KEY=\"VALUE\"'"
            )
        if override.is_sweep_override() and not multirun:
            return UserError(
                f"{override.key_or_group} has several values, which only a sweep can have: add -m"
            )
        overrides.append(override)
    # then choices, which decide which options exist
    try:
        return _refused_choice(overrides, search_path) or _refused_option(overrides, search_path)
    except (HydraException, OmegaConfBaseException):
        return None  # the error is in a file and not in a word


def _refused_choice(overrides: Sequence[Override], search_path: Sequence[str]) -> UserError | None:
    """Returns the explanation of the first unknown part, preset or experiment."""
    for override in overrides:
        group = override.key_or_group
        if group not in GROUPS:
            continue
        choices = _choices(group, search_path)
        for value in override_values(override):
            # values that are not names have been refused before
            if not isinstance(value, str) or value in choices:
                continue
            if value == OLD_DEFAULT and group in DEFAULT_ROOMS:
                return UserError(f"{group}={value} is now {group}={DEFAULT}")
            noun = PRESETS.get(group, "part")
            return UserError(f"{group}={value}: no such {noun}{suggest(value, choices)}")
    return None


def _choices(group: str, search_path: Sequence[str]) -> list[str]:
    """Returns the names of a group's files, also of those in its folders: `panel/yesno`."""
    loader = GlobalHydra.instance().config_loader()
    options: dict[str, Any] = {"config_name": "train", "overrides": [*search_path]}
    choices = loader.get_group_options(group, **options)
    for folder in loader.get_group_options(group, ObjectType.GROUP, **options):
        names = loader.get_group_options(f"{group}/{folder}", **options)
        choices += [f"{folder}/{name}" for name in names]
    return choices


def _refused_option(overrides: Sequence[Override], search_path: Sequence[str]) -> UserError | None:
    """Returns the explanation of the first option that does not exist or has the wrong type."""
    for config in _compositions(overrides, search_path):
        for override in overrides:
            mistake = _refused_override(config, override)
            if mistake is not None:
                return mistake
    return None


def _compositions(overrides: Sequence[Override], search_path: Sequence[str]) -> Iterator[Container]:
    """Yields the config of the chosen parts.

    In a sweep, each choice is combined with the first choices of the other groups.
    """
    # the choices of each group
    choices: dict[str, list[str]] = {}
    for override in overrides:
        if override.key_or_group in GROUPS:
            values = override_values(override)
            choices[override.key_or_group] = [name for name in values if isinstance(name, str)]
    # not all combinations of a sweep, which may be many
    first = {group: values[0] for group, values in choices.items() if values}
    variants = [first]
    for group, values in choices.items():
        variants += [first | {group: value} for value in values[1:]]
    for variant in variants:
        words = [f"{group}={value}" for group, value in variant.items()]
        yield compose("train", [*search_path, *words])


def _refused_override(config: Container, override: Override) -> UserError | None:
    """Returns the explanation of an override that the config of the chosen parts refuses."""
    key = override.key_or_group
    if override.is_delete() or key.startswith("hydra"):
        return None
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            return UserError(f"{override.input_line}: {old} is now {new}")
    for value in override_values(override):
        # trainer={max_steps:1} sets options, but trainer=default is a choice
        is_choice = key in GROUPS and not isinstance(value, dict)
        mistake = None if is_choice else _refused_value(config, key, value)
        if mistake is not None:
            return mistake
    return None


def _refused_value(config: Container, key: str, value: Any) -> UserError | None:
    """Sets an option in the config; returns the explanation if that fails."""
    is_free = key.startswith(f"{FREE_FORM}.")
    node: Any = OmegaConf.to_container(config, resolve=False)
    path: list[str] = []
    # the option must exist
    for step in [] if is_free else key.split("."):
        if isinstance(node, list):
            break
        if not isinstance(node, dict):
            current = "null" if node is None else node
            return UserError(f"{'.'.join(path)} is {current}, so it has no {key}")
        path.append(step)
        if step not in node:
            return _unknown_option(node, path, OmegaConf.to_container(config, resolve=False))
        node = node[step]
    # its type must be right
    try:
        OmegaConf.update(config, key, value, force_add=is_free)
    # OmegaConf raises its own errors, but also AssertionError and OverflowError
    except Exception as error:
        if isinstance(value, dict):
            # one of several options that are set together
            for name, inner in value.items():
                mistake = _refused_value(config, f"{key}.{name}", inner)
                if mistake is not None:
                    return mistake
        elif isinstance(node, dict):
            return UserError(f"{key}={value} must be a mapping of {', '.join(node)}")
        reason = "it must have a value" if value is None else one_line(error)
        return UserError(f"{key}={'null' if value is None else value}: {reason}")
    return None


def _unknown_option(node: Mapping[str, Any], path: list[str], config: Any) -> UserError:
    """Explains that the last step of a path does not exist in the node of the others.

    Args:
        config: the composed config as plain values.
    """
    *parents, key = path
    room = parents[0] if parents else ""
    meant = elsewhere(key, config, room)
    if not parents:
        ending = f": set {meant}" if meant else suggest(key, [*node, "experiment"])
        return UserError(f"there is no option {key}{ending}")
    option = ".".join(path)
    # parts of the room that have such an option
    owners = [name for name, part in PARTS.get(room, {}).items() if key in hyperparameters(part)]
    if node.get("name") == DEFAULT and owners:
        return UserError(
            f"{option} is an option of a part that is not chosen yet: "
            f"add {room}={' or '.join(owners)}"
        )
    owner = f"{room}={node['name']}" if "name" in node else ".".join(parents)
    if meant:
        return UserError(f"{owner} has no {option}: set {meant}")
    known = [name for name in node if name != "name"]
    ending = suggest(key, known)
    if owners and "did you mean" not in ending:
        others = " or ".join(f"{room}={name}" for name in owners)
        return UserError(f"{owner} has no {option}, which is an option of {others}")
    return UserError(f"{owner} has no {option}{ending}")
