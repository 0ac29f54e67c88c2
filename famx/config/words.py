"""Translates the words after `python -m famx.train` to the command line that Hydra reads.

`hydra_words` applies the rules; each rule is a function whose docstring states why it is needed.
"""

import hashlib
import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from famx.config.command import Parser, find_override
from famx.config.documents import read_yaml
from famx.config.launchers import require_launcher
from famx.config.overrides import parse_override, values_of
from famx.config.schema import CONF, DEFAULT
from famx.config.versions import register_resolver
from famx.notation import UserError
from famx.registry import ROOMS, names

SECTIONS = ("trainer", "loader")
PRESETS = {"model": "preset", "experiment": "experiment"}
GROUPS = (*ROOMS, *SECTIONS, *PRESETS)
"""Options whose value is the name of a part, of a preset or of an experiment."""
WITHOUT_FOLDER = ("hydra", "sweep.", "loader.workers", "loader.cache_gb", "trainer.threads")
"""Options that do not decide in which folder a sweep is."""
FREE_FORM = "model.draw.space"
"""The only mapping to which keys may be added, and from which they may be removed."""

MAX_FOLDER_NAME = 240  # bytes; file systems allow 255


def hydra_words(options: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Returns the overrides that Hydra reads.

    Args:
        options, overrides: the user's command line, from `split_words`.

    Raises:
        UserError: an override is not allowed, although Hydra would accept it.
    """
    overrides = last_of_each_key([without_plus(word) for word in overrides])
    for word in overrides:
        require_name(word)
        require_launcher(word)
        refuse_removal(word)
        refuse_repeated_value(word)
    # the user's overrides come before those that follow from them
    if "--multirun" in options:
        run_name = sweep_folders(overrides, options)
        overrides = [as_choice(word) for word in overrides]
    else:
        run_name = name_from_parts(overrides)
    return [*overrides, *run_name, *folder_of_other_processes()]


def last_of_each_key(overrides: Sequence[str]) -> list[str]:
    """Returns the overrides of which each is the last one of its option.

    Hydra uses the last one too, but a sweep over the values of both would have equal runs.
    """
    by_key: dict[str, str] = {}
    for word in overrides:
        key = word.partition("=")[0]
        # at the place of the last one, since a part replaces the options that were set before
        by_key.pop(key, None)
        by_key[key] = word
    return list(by_key.values())


def refuse_repeated_value(word: str) -> None:
    """Checks that the runs of a sweep differ.

    Raises:
        UserError: a value is given twice.
    """
    values = values_of(word)
    for i, value in enumerate(values):
        if value in values[:i]:
            raise UserError(f"{word} has the value {value} twice: the runs of a sweep must differ")


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits a command line into options of Hydra, such as `--multirun`, and overrides.

    Hydra's own parser would print its usage after a mistake, and accepts options and overrides
    only in this order.

    Raises:
        UserError: an option is unknown, or lacks its value.
    """
    parser = Parser(prog="python -m famx.train", add_help=False, allow_abbrev=False)
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("-c", "--cfg", choices=("job", "hydra", "all"))
    parser.add_argument("-cd", "--config-dir")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args(words)
    if arguments.multirun and arguments.cfg:
        raise UserError("only one of --multirun and --cfg can be given")
    # long names, which the other rules expect
    options = ["--multirun"] if arguments.multirun else []
    if arguments.dry:
        options += ["--dry"]
    if arguments.cfg:
        options += ["--cfg", arguments.cfg]
    if arguments.config_dir:
        options += ["--config-dir", arguments.config_dir]
    return options, arguments.overrides


def without_plus(word: str) -> str:
    """Returns `+optim.lr=1`, which would add a key, as `optim.lr=1`, which sets one.

    A key that does not exist can only be a mistake, since no part would read it.
    """
    key = word.lstrip("+")
    return word if key.startswith(("hydra", FREE_FORM)) else key


def require_name(word: str) -> None:
    """Checks that a part is chosen by its name, and not as in `attention={name: worm}`.

    Hydra would merge such a mapping into the current part, and `attention=null` would leave the
    room without a part.

    Raises:
        UserError: the value is not a name.
    """
    group, equals, text = word.partition("=")
    room, _, key = group.partition(".")
    if room in ROOMS and key == "name":
        raise UserError(f"{word}: a part is chosen by {room}={text}")
    if group not in GROUPS or not equals:
        return
    if text in ("", "null"):
        raise UserError(_without_choice(word, group))
    # each value of a sweep
    for value in values_of(word):
        if isinstance(value, str) or (group in SECTIONS and isinstance(value, dict)):
            continue
        if group in SECTIONS:
            raise UserError(f"{word} is not a section; options are set by {group}.KEY=VALUE")
        message = f"{word} must be the name of one {_noun(group)}, such as {_example(group)}"
        if group in ROOMS:
            message += f"; hyperparameters are set by {group}.KEY=VALUE"
        raise UserError(message)


def _without_choice(word: str, group: str) -> str:
    """Returns the message about an override that leaves a group without a choice."""
    if group in SECTIONS:
        return f"{word} leaves the run without a {group}; its options are set by {group}.KEY=VALUE"
    if group == "experiment":
        return f"{word}: a run without an experiment leaves this option out"
    return f"{word} leaves {group} without a {_noun(group)}; choose one, such as {_example(group)}"


def _noun(group: str) -> str:
    return PRESETS.get(group, "part")


def _example(group: str) -> str:
    name = names(group)[0] if group in ROOMS else preset_names(group)[0]
    return f"{group}={name}"


def preset_names(group: str) -> list[str]:
    """Returns the names of the files of a folder of conf/."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def refuse_removal(word: str) -> None:
    """Raises for `~KEY`: every option is needed, and a room without a part cannot be built.

    Raises:
        UserError: an option would be removed.
    """
    key = word.removeprefix("~").partition("=")[0]
    if not word.startswith("~") or key.startswith(("hydra", f"{FREE_FORM}.")):
        return
    if key in GROUPS:
        raise UserError(_without_choice(word, key))
    raise UserError(f"{word}: an option can be set, by {key}=VALUE, but not removed")


def as_choice(word: str) -> str:
    """Returns an override of a sweep as a sweep over one value: `optim.n_bands=choice(4)`.

    Hydra first composes the config without swept options. This config has the default optimizer
    and not those of `optim=fam,adamw`, so `optim.n_bands=4` would be refused.
    """
    key, equals, value = word.partition("=")
    # the sweep of an experiment is read from that first config; null is no value of choice()
    is_fixed = key in ("experiment", "famx_parts") or value in ("", "null")
    if not equals or word.startswith(("~", "hydra")) or is_fixed:
        return word
    override = parse_override(word)
    if override is None or override.is_sweep_override():
        return word
    return f"{key}=choice({value})"


def name_from_parts(overrides: Sequence[str]) -> list[str]:
    """Returns the override that names a run by all chosen parts.

    The run of `attention=cosine` is `transformer_adamw_cosine`; without this override, all runs of
    one model and optimizer would have the same name.
    """
    # the optimizer is in every name
    choices = [find_override(room, overrides) for room in ROOMS if room != "optim"]
    selected = [name for name in choices if name and name != DEFAULT]
    if not selected or find_override("name", overrides):
        return []
    name = "_".join(["${model.name}_${optim.name}", *selected])
    return [f"name='{name}'"]


def sweep_folders(overrides: Sequence[str], options: Sequence[str]) -> list[str]:
    """Returns the overrides that name the folder of a sweep, and in it those of its runs.

    A run is named by the options that are swept: `optim=fam,seed=1`; by default Hydra numbers runs.
    The folder of the sweep is named by the keys of these options and a digest of all others, so
    that the same sweep finds its runs again, also if values are added to it.
    """
    swept = swept_options(overrides, options)
    if not swept:
        return []
    # values are known only after Hydra has composed the run
    register_resolver("folder_name", _folder_name)
    max_length = MAX_FOLDER_NAME // len(swept)
    runs = ",".join(_named_value(key, max_length - len(key)) for key in swept)
    words = [f"hydra.sweep.subdir='{runs}'"]
    if find_override("hydra.sweep.dir", overrides) is None:
        words.append(f"hydra.sweep.dir='{default_sweep_folder(overrides, swept)}'")
    return words


def swept_options(overrides: Sequence[str], options: Sequence[str]) -> list[str]:
    """Returns the keys of the options that have several values, in alphabetical order."""
    # an override with one value replaces a sweep of the experiment
    fixed = set()
    swept = list(experiment_sweep(overrides, options))
    for word in overrides:
        override = parse_override(word)
        if override is None or override.is_delete():
            continue
        if not override.is_sweep_override():
            fixed.add(override.key_or_group)
        elif not override.is_add():
            swept.append(override.key_or_group)
    return sorted(set(swept) - fixed)


def default_sweep_folder(overrides: Sequence[str], swept: Sequence[str]) -> str:
    """Returns the folder of a sweep: `outputs/sweep_optim_seed_1a2b3c`."""
    fixed = []
    for word in overrides:
        key = word.partition("=")[0].lstrip("+")
        if key not in swept and not key.startswith(WITHOUT_FOLDER):
            fixed.append(word)
    digest = hashlib.sha256("\n".join(sorted(fixed)).encode()).hexdigest()[:6]
    # `data.root` and `optim.lr` are named root and lr
    names = [key.rpartition(".")[2] for key in swept]
    return f"outputs/sweep_{'_'.join(names)}_{digest}"


def sweep_folder(overrides: Sequence[str]) -> Path | None:
    """Returns the folder that the overrides name for a sweep, None if they name none."""
    for word in overrides:
        override = parse_override(word)
        if override is not None and override.key_or_group == "hydra.sweep.dir":
            return Path(str(override.value()))
    return None


def _named_value(key: str, max_length: int) -> str:
    """Returns `key=value`, with the value as an interpolation that Hydra resolves in each run."""
    # a part is a mapping, so its name stands for it
    value = key
    if key in ROOMS or key == "model":
        value = f"{key}.name"
    elif key == "experiment":
        value = "hydra.runtime.choices.experiment"
    return f"{key}=${{folder_name:${{{value}}},{max_length}}}"


def _folder_name(value: Any, max_length: int) -> str:
    """Returns a value as part of a folder's name, in which a slash would begin another folder.

    A long value is cut, and ends in a digest that differs from those of other values.
    """
    name = "null" if value is None else str(value).replace("/", "_")
    encoded = name.encode()
    if len(encoded) <= max_length:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    start = encoded[: max(0, max_length - len(digest) - 1)].decode(errors="ignore")
    return f"{start}~{digest}"


def user_folders(options: Sequence[str]) -> list[Path]:
    """Returns the folder of `--config-dir`, if it is given."""
    pairs = itertools.pairwise(options)
    return [Path(value).resolve() for option, value in pairs if option == "--config-dir"]


def experiment_sweep(overrides: Sequence[str], options: Sequence[str]) -> dict[str, str]:
    """Returns the sweep that the chosen experiment declares: option -> values, `a,b`."""
    name = find_override("experiment", overrides)
    folders = [CONF, *user_folders(options)]
    files = [folder / "experiment" / f"{name}.yaml" for folder in folders]
    file = next((file for file in files if file.is_file()), None)
    node = read_yaml(file) if file else {}
    # the sweep is where Hydra's sweeper looks for it
    for key in ("hydra", "sweeper", "params"):
        node = node.get(key) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        return {}
    return {key: str(values) for key, values in node.items()}


def folder_of_other_processes() -> Iterator[str]:
    """Yields, in all processes of a run but the first, the override of Hydra's folder.

    Hydra creates a folder in each process, but only that of the first process is used.
    """
    if int(os.environ.get("RANK", 0)) > 0:
        yield f"hydra.run.dir={tempfile.gettempdir()}/famx_rank"
