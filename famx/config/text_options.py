"""Options that are texts, such as paths: their values stay as they are typed.

Hydra reads `data.root=1.10` as the number 1.1, `2024_01_15` as 20240115, and refuses brackets and
spaces; so such values are quoted before Hydra reads them.
"""

import hashlib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from famx.config.overrides import override_values, parse_override
from famx.config.schema import annotation
from famx.config.sections import RunConfig
from famx.registry import PARTS, ROOMS, hyperparameters

HYDRA_TEXTS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
LOADER_TEXTS = ("loader.noise", "loader.rooms")
SYNTAX = re.compile(r"""[\[\]{}()'"$\\]""")  # characters of Hydra's lists, quotes and functions


def quote_texts(overrides: Sequence[str], is_sweep: bool) -> list[str]:
    """Returns the overrides, with quotes around texts that Hydra would read as something else."""
    return [_quote_text(word, is_sweep) for word in overrides]


def replace_texts(overrides: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Replaces fixed texts that Hydra's sweeper cannot pass on to the runs of a sweep.

    The sweeper writes each value without its quotes, and then cannot read letters such as ü.

    Returns:
        The overrides, and the text for which each new value stands.
    """
    words = []
    texts = {}
    for word in overrides:
        override = parse_override(word)
        option = word.partition("=")[0]
        # folders of the sweep itself are not passed on
        is_text = is_text_option(option.lstrip("+")) and option not in HYDRA_TEXTS
        if is_text and override is not None and isinstance(override.value(), str):
            text = str(override.value())
            if not _is_passed_on(text):
                digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
                texts[f"text-{digest[:16]}"] = text
                word = f"{option}=text-{digest[:16]}"
        words.append(word)
    return words, texts


def restore_texts(config: Any, texts: Mapping[str, str]) -> Any:
    """Returns a plain config with the texts in place of the values of `replace_texts`."""
    if isinstance(config, Mapping):
        return {key: restore_texts(value, texts) for key, value in config.items()}
    if isinstance(config, list):
        return [restore_texts(value, texts) for value in config]
    return texts.get(config, config) if isinstance(config, str) else config


def _is_passed_on(text: str) -> bool:
    """Returns whether a run of a sweep gets a fixed text as it is."""
    override = parse_override(f"key=choice({_quote(text)})")
    if override is None:
        return False
    (value,) = override.sweep_string_iterator()
    received = parse_override(f"key={value}")
    return received is not None and override_values(received) == [text]


def is_text_option(option: str) -> bool:
    """Returns whether an option is a text: by its annotation in any part of its room."""
    room, _, key = option.partition(".")
    if room in ROOMS:
        parts = [part for part in PARTS.get(room, {}).values() if key in hyperparameters(part)]
        return any(_is_text(annotation(part, key)) for part in parts)
    hints = typing.get_type_hints(RunConfig)
    return option in HYDRA_TEXTS + LOADER_TEXTS or (option in hints and _is_text(hints[option]))


def _is_text(hint: Any) -> bool:
    return set(typing.get_args(hint) or (hint,)) - {types.NoneType} == {str}


def _quote_text(word: str, is_sweep: bool) -> str:
    option, equals, text = word.partition("=")
    if not equals or not is_text_option(option.lstrip("+")):
        return word
    # each value of a sweep, where commas can only be between values
    if is_sweep and "," in text:
        choice = re.fullmatch(r"choice\((.*)\)", text)
        values = choice[1] if choice else text
        if SYNTAX.search(values):
            return word
        quoted = [_quote(value) if _is_changed(value) else value for value in values.split(",")]
        return f"{option}={','.join(quoted)}"
    # a folder of Hydra has one name, with commas too
    is_changed = _is_changed(text) or (option in HYDRA_TEXTS and _is_sweep(text))
    return f"{option}={_quote(text)}" if is_changed else word


def _is_sweep(text: str) -> bool:
    override = parse_override(f"key={text}")
    return override is not None and override.is_sweep_override()


def _is_changed(text: str) -> bool:
    """Returns whether Hydra would not read a value as this text, unless it is null."""
    override = parse_override(f"key={text}")
    if override is None:
        return True
    values = override_values(override)
    if len(values) == 1 and isinstance(values[0], bool | int | float):
        return True
    # a list or a sweep is a mistake, unless it is the name of a file
    is_word = len(values) == 1 and (values[0] is None or isinstance(values[0], str))
    return not is_word and Path(text).exists()


def _quote(text: str) -> str:
    """Returns a text as a quoted value of Hydra, in which only quotes and their backslashes count.

    Backslashes are doubled before a quote, and at the end, where the closing quote follows.
    """
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{trailing * chr(92)}'"
