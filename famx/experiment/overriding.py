"""Sets options of a trained run for one command: its data, its decoder, its device."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from famx.config.command import parse_yaml
from famx.config.schema import complete_choice
from famx.config.text_options import is_text_option
from famx.experiment.resolve import with_absolute_paths
from famx.notation import UserError
from famx.registry import get
from famx.training.trainer_config import TrainerConfig

Config = Mapping[str, Any]

OVERRIDABLE = ("trainer.device", "trainer.threads")  # options of a trained run
OVERRIDABLE_ROOMS = ("data", "decode")
MAX_LABEL = 100  # characters of a label in the name of a file


def override_decoding(config: Config, words: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Applies words such as `decode.beam=8` or `data.root=FOLDER` to a trained run's config.

    The device is selected again unless a word sets it.

    Returns:
        The config, and a label of what changed for file names, empty if that is nothing.

    Raises:
        UserError: a word sets another option, or one that does not exist.
    """
    # another machine may have another device
    trainer = dict(config["trainer"]) | {"device": "auto", "threads": None}
    choices = {room: dict(config[room]) for room in OVERRIDABLE_ROOMS}
    options: dict[str, dict[str, Any]] = {room: {} for room in OVERRIDABLE_ROOMS}
    for word in words:
        key, equals, text = word.partition("=")
        room, _, option = key.partition(".")
        if not equals or (key not in OVERRIDABLE and room not in OVERRIDABLE_ROOMS):
            raise UserError(
                f"{word} cannot be set for a trained run; these can: decode=NAME, "
                "decode.KEY=VALUE, data=NAME, data.KEY=VALUE, trainer.device=NAME, "
                "trainer.threads=N"
            )
        if key == room:
            choices[room] = {"name": text}
        elif room in OVERRIDABLE_ROOMS:
            # a path stays as it is typed
            is_text = is_text_option(key) and text != "null"
            options[room][option] = text if is_text else parse_yaml(key, text)
        else:
            trainer[option] = parse_yaml(key, text)
    # complete choices; only those that differ have a label
    changed: dict[str, Any] = {}
    labels = []
    for room, choice in choices.items():
        # a default, as training would have resolved it
        if choice["name"] == "default":
            choice["name"] = get("task", config["task"]["name"]).default_parts[room]
        changed[room] = complete_choice(room, choice | options[room])
        changed[room] = with_absolute_paths(room, changed[room])
        trained = complete_choice(room, config[room])
        if room == "data":
            _require_tokenizer(trained, changed[room])
        if changed[room] != trained:
            labels.append(_label(changed[room]["name"], options[room]))
    trainer = vars(TrainerConfig(**trainer))
    return dict(config) | changed | {"trainer": trainer}, ".".join(reversed(labels))


def _require_tokenizer(trained: Config, data: Config) -> None:
    """Checks that data of the same kind as those of the training have the same tokenizer.

    Raises:
        UserError: an option that decides the tokenizer has another value.
    """
    if data["name"] != trained["name"]:
        return
    for option in get("data", data["name"]).tokenizer_options:
        if data[option] != trained[option]:
            raise UserError(
                f"data.{option}={data[option]} must be {trained[option]}, as in the training: it "
                "decides the tokenizer of the run"
            )


def _label(name: str, options: Config) -> str:
    """Returns the name of a part and its options as part of a file's name."""
    label = ",".join([name, *(f"{key}={value}" for key, value in options.items())])
    if re.fullmatch(r"[\w.,=+-]*", label) and len(label) <= MAX_LABEL:
        return label
    # a digest tells apart what looks the same without its slashes or its beginning
    digest = hashlib.sha256(label.encode(errors="surrogateescape")).hexdigest()[:8]
    return re.sub(r"[^\w.,=+-]+", "_", label)[:MAX_LABEL] + f"-{digest}"
