"""Trains: python -m famx.train model=myelinated optim=fam optim.lr=0.5

With -m it trains a sweep: python -m famx.train -m optim=fam,adamw seed=0,1
"""

import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.types import RunMode
from omegaconf import Container

from famx.config.command import find_override, import_user_parts, parse_yaml, run_command
from famx.config.composition import run_hydra
from famx.config.errors import explain_hydra_error, refuse_renamed
from famx.config.schema import fill_defaults, register_schemas, section_schema, to_plain
from famx.config.sections import ModelConfig
from famx.config.words import hydra_words, split_words
from famx.experiment.run import run
from famx.files import printable, report_os_errors
from famx.notation import UserError
from famx.parts import show
from famx.registry import get
from famx.training.loader_config import LoaderConfig
from famx.training.run_dir import RunDir
from famx.training.trainer_config import TrainerConfig

SECTION_TYPES = {"trainer": TrainerConfig, "loader": LoaderConfig}
# options that may change on resume, since they do not influence the steps already taken
RESUMABLE = (
    "trainer.max_steps",
    "trainer.eval_every",
    "trainer.save_every",
    "trainer.log_every",
    "trainer.patience",
    "trainer.device",
    "trainer.threads",
    "loader.workers",
    "loader.cache_gb",
)


def main() -> int:
    """Trains, resumes a run, or prints the help; returns the exit status."""
    words = sys.argv[1:]
    if {"--help", "-h"}.intersection(words):
        return print_help()
    if find_override("resume", words) in (None, "null"):
        return train(words)
    return resume(words)


def print_help() -> int:
    """Prints how the command is used: the options, and all parts with their hyperparameters."""
    print(__doc__)
    print("Options, as KEY=VALUE with their defaults:")
    # options of a run, then those of its sections
    print(
        "  seed=0, probe=light, resume=RUN, init_from=RUN, famx_parts=[FILE], hydra.run.dir=FOLDER"
    )
    for section, defaults in (
        ("model", ModelConfig(name="transformer")),
        ("trainer", TrainerConfig()),
        ("loader", LoaderConfig()),
    ):
        options = [f"{section}.{key}={value}" for key, value in vars(defaults).items()]
        print(textwrap.fill(", ".join(options), 100, initial_indent="  ", subsequent_indent="    "))
    print("\nSet rooms by ROOM=NAME and hyperparameters by ROOM.KEY=VALUE; the parts of each room:")
    return show([])


def train(words: Sequence[str]) -> int:
    """Composes the config, or those of a sweep, and trains; returns the exit status.

    Raises:
        UserError: a mistake on the command line, or in a run.
    """
    # the user's parts are registered first, since they need schemas too
    options, overrides = split_words(words)
    runs = Runs(import_user_parts(overrides))
    register_schemas(**SECTION_TYPES)
    words = hydra_words(options, overrides)
    # an error before the first run is about the command line
    try:
        results = run_hydra(runs.carry_out, options, words)
    except Exception as error:
        if runs.started or isinstance(error, UserError):
            raise
        mistake = explain_hydra_error(error, overrides, options)
        if mistake is None:
            raise
        raise mistake from error
    raise_refused(results)
    return 0


class Runs:
    """Trains the runs that Hydra composes: one run, or those of a sweep one after the other.

    Args:
        user_parts: name and digest of the files of the user's own parts.
    """

    def __init__(self, user_parts: list[dict[str, str]]):
        self.user_parts = user_parts
        self.started = False

    def carry_out(self, config: Container) -> float | UserError | None:
        """Trains in the folder that Hydra made.

        Returns:
            The score on dev, for sweepers that search for its minimum; the mistake if the run is
            refused, as a value: an exception would end the sweep, and what this object stores in
            another process, where a launcher may start the run, would be lost.
        """
        self.started = True
        folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            return self._train(config, folder)
        except UserError as error:
            self._report(folder, error)
            return error

    def _train(self, config: Container, folder: Path) -> float | None:
        with report_os_errors(folder):
            plain = {**to_plain(config), "famx_parts": self.user_parts}
            refuse_renamed(plain, "the config")
            results = run(plain, folder)
        if "stopped_by" in results:
            # a signal ends the sweep too
            sys.exit(128 + results["stopped_by"])
        task = get("task", plain["task"]["name"])
        return results.get(f"dev/{task.selection_metric}")

    def _report(self, folder: Path, error: UserError) -> None:
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            sentence = printable(f"{folder.name} is refused: {error}")
            print(f"famx: {sentence}", file=sys.stderr, flush=True)
        # only a single process removes its empty folder: several would race
        if "RANK" not in os.environ and not any(folder.iterdir()):
            folder.rmdir()


def raise_refused(results: Sequence[JobReturn]) -> None:
    """Raises the first mistake of all runs, if there was one.

    Raises:
        UserError: a run was refused.
    """
    values = [result.return_value for result in results]
    refused = [value for value in values if isinstance(value, UserError)]
    if not refused:
        return
    if len(refused) == 1:
        raise refused[0]
    raise UserError(
        f"{len(refused)} runs of the sweep were refused; the first: {refused[0]}"
    ) from refused[0]


def resume(words: Sequence[str]) -> int:
    """Continues a run in its own folder, with its own config; returns the exit status.

    Raises:
        UserError: the run does not exist, or an override cannot change on resume.
    """
    name = find_override("resume", words)
    if not name:
        raise UserError("resume= needs the folder of a run: resume=FOLDER")
    # the stored run
    run_dir = RunDir(name)
    run_dir.require_checkpoints()
    config = run_dir.load_config()
    import_user_parts(words, run_dir.path, config["famx_parts"])
    # changed options
    for word in words:
        key, equals, value = word.lstrip("+").partition("=")
        if key in ("resume", "famx_parts"):
            continue
        if key not in RESUMABLE or not equals:
            raise UserError(
                f"{word} cannot change on resume; these can, each with =VALUE: "
                f"{', '.join(RESUMABLE)}"
            )
        section, _, option = key.partition(".")
        config[section][option] = parse_yaml(key, value)
    # checks the types of changed options, and adds the defaults of options newer than the run
    for section, fields in SECTION_TYPES.items():
        config[section] = fill_defaults(section_schema(fields), config[section], section)
    results = run(config, run_dir.path, resume=True)
    return 128 + results["stopped_by"] if "stopped_by" in results else 0


if __name__ == "__main__":
    run_command(main)
