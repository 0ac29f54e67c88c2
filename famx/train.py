"""Trains: python -m famx.train model=myelinated optim=fam optim.lr=0.5, or -m optim=fam,adamw seed=0,1 for a sweep."""

import enum
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from famx.config.command import (
    Parser,
    find_override,
    import_user_parts,
    parse_yaml,
    require_parts,
    run_command,
)
from famx.config.errors import explain_hydra_error
from famx.config.schema import CONF, fill_defaults, register_schemas, section_schema, to_plain
from famx.notation import UserError
from famx.registry import ROOMS
from famx.training.loader import LoaderConfig
from famx.training.run_dir import load_config
from famx.training.trainer import TrainerConfig

# what may change when a run goes on, since it cannot alter what has been
_TRAINER = ("max_steps", "eval_every", "save_every", "log_every", "patience", "device", "threads")
RESUMABLE = [*(f"trainer.{name}" for name in _TRAINER), "loader.workers"]


def main() -> int:
    """Composes the config from the command line and runs it; returns the exit status."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        from famx.parts import show

        print(
            f"{__doc__}\n\nEvery room is an option, every part or preset a choice, hyperparameters its keys:"
        )
        return show([])
    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException

    words = sys.argv[1:] = [_known(word) for word in sys.argv[1:]]
    if (run := find_override("resume")) not in (None, "null"):
        return _resume(run, words)
    Parser(prog="python -m famx.train", parents=[get_args_parser()], add_help=False).parse_args(
        words
    )
    files = import_user_parts(words)
    register_schemas(trainer=TrainerConfig, loader=LoaderConfig)
    require_parts(words)
    os.environ["HYDRA_FULL_ERROR"] = "1"
    mistakes: list[UserError] = []
    if int(os.environ.get("RANK", 0)) > 0:
        sys.argv.append(f"hydra.run.dir={tempfile.gettempdir()}/famx_rank")
    try:
        if {"-m", "--multirun"} & set(words):
            sys.argv[1:] = [*map(_waiting, sys.argv[1:]), *_sweep_names(words)]
        else:
            sys.argv += _run_name(words)
        composed = hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
        composed(lambda config: _run(config, files, mistakes))()
    except (HydraException, OmegaConfBaseException) as error:
        raise explain_hydra_error(error, _without(words, str(error))) from error
    if len(mistakes) > 1:
        raise UserError(f"{len(mistakes)} runs of the sweep were refused; the first: {mistakes[0]}")
    if mistakes:
        raise mistakes[0]
    return 0


def _run(config: Any, files: list[dict[str, str]], mistakes: list[UserError]) -> float | None:
    """One run, of a sweep or alone, in the folder that Hydra made; how well it did. A mistake joins the `mistakes`."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from famx.experiment.run import run

    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        with files.report_os_errors(folder):
            results = run(to_plain(config) | {"famx_parts": files}, folder)
    except UserError as error:  # Hydra would add lines of its own; the other runs of a sweep go on
        mistakes.append(error)
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            print(f"famx: {folder.name} is refused: {error}", file=sys.stderr, flush=True)
        if "RANK" not in os.environ and not any(folder.iterdir()):
            folder.rmdir()
        return None
    if "stopped_by" in results:
        sys.exit(128 + results["stopped_by"])  # of a sweep, what has not begun does not begin
    return results.get("dev/wer", results.get("dev/loss"))


def _resume(name: str, words: list[str]) -> int:
    """Goes on with a run in its own folder, under its own config."""
    from famx.experiment.run import run
    from famx.training.run_dir import checkpoint_dir

    if not name:
        raise UserError("resume= names no run: resume=FOLDER")
    folder = Path(name)
    checkpoint_dir(folder)
    config = load_config(folder)
    import_user_parts(words, folder, config["famx_parts"])
    for word in words:
        key, equals, value = word.partition("=")
        if key in ("resume", "famx_parts"):
            continue
        if key not in RESUMABLE or not equals:
            allowed = ", ".join(RESUMABLE)
            raise UserError(
                f"{word} is not what may change of a run that has begun: {allowed}, each with =VALUE"
            )
        section, _, name = key.partition(".")
        config[section][name] = parse_yaml(key, value)
    for section, schema in (("trainer", TrainerConfig), ("loader", LoaderConfig)):
        config[section] = fill_defaults(section_schema(schema), config[section], section)
    return (
        128 + stopped if (stopped := run(config, folder, resume=True).get("stopped_by", 0)) else 0
    )


def _known(word: str) -> str:
    """A word that adds a key, `+optim.lr=1`, as one that sets it: what is added would reach nothing.

    Only what layers may be drawn from is a list that can grow.
    """
    key = word.lstrip("+")
    return word if key.startswith(("hydra", "model.draw.space")) else key


def _run_name(words: list[str]) -> list[str]:
    """The word that names a run by all parts that were chosen: `attention=cosine` is `transformer_adamw_cosine`."""
    chosen = [value for room in ROOMS if room != "optim" and (value := find_override(room, words))]
    if not chosen or find_override("name", words):
        return []
    return [f"name='{'_'.join(['${model.name}_${optim.name}', *chosen])}'"]


def _waiting(word: str) -> str:
    """A word of a sweep as a choice of one.

    Hydra first composes what is not swept, and would hold the word to that: `optim.n_bands=4` to the usual optimizer.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    key, _, value = word.partition("=")
    # an experiment may hold a sweep itself, which Hydra reads from what is not swept; and null it takes for no choice
    if (
        word.startswith(("-", "~", "hydra"))
        or key in ("experiment", "famx_parts")
        or value in ("", "null")
    ):
        return word
    swept = OverridesParser.create().parse_override(word).is_sweep_override()
    return word if swept else f"{key}=choice({value})"


def _sweep_names(words: list[str]) -> list[str]:
    """The word that names each run of a sweep by just what is swept: `optim=fam,seed=1`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType

    overrides = OverridesParser.create().parse_overrides(
        [w for w in words if not w.startswith("-")]
    )
    held = _sweep_of(find_override("experiment", words))
    fixed = {o.key_or_group for o in overrides if not o.is_sweep_override()}
    given = [
        o.key_or_group for o in overrides if o.type is OverrideType.CHANGE and o.is_sweep_override()
    ]
    swept = [key for key in dict.fromkeys([*held, *given]) if key not in fixed]
    values = {key: f"{key}.name" for key in (*ROOMS, "model")} | {
        "experiment": "hydra.runtime.choices.experiment"
    }
    OmegaConf.register_new_resolver("word", _word, replace=True)
    named = [f"{key}=${{word:${{{values.get(key, key)}}}}}" for key in swept]
    return [f"hydra.sweep.subdir='{','.join(named)}'"] if swept else []


def _word(value: Any) -> str:
    """A value as part of the name of a folder, which a path is without its slashes."""
    word = value.value if isinstance(value, enum.Enum) else "null" if value is None else value
    return str(word).replace("/", "_")


def _sweep_of(experiment: str | None) -> list[str]:
    """The keys of the sweep that an experiment's file holds."""
    file = CONF / "experiment" / f"{experiment}.yaml"
    node = yaml.safe_load(file.read_text()) if file.is_file() else {}
    for key in ("hydra", "sweeper", "params"):
        node = node.get(key, {})
    return list(node)


def _without(words: list[str], told: str) -> dict:
    """The composition without the words that an error names, to say what could have been chosen."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    GlobalHydra.instance().clear()
    kept = [w for w in words if "=" in w and not w.startswith(("-", "hydra.")) and "," not in w]
    keys = {w: re.escape(w.partition("=")[0].lstrip("+~")) for w in kept}
    kept = [w for w in kept if not re.search(rf"(?<![\w.]){keys[w]}(?!\.?\w)", told)]
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return OmegaConf.to_container(compose("train", kept), resolve=False)
    except (HydraException, OmegaConfBaseException) as error:
        return _without(kept, str(error)) if len(kept) < len(words) else {}


if __name__ == "__main__":
    run_command(main)
