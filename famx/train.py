"""Trains a run or a sweep: python -m famx.train model=myelinated optim=fam optim.lr=0.5

With -m it trains a sweep: python -m famx.train -m optim=fam,adamw seed=0,1
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import Container
from rich.console import Console

from famx.config.command import (
    find_override,
    import_user_parts,
    parse_yaml,
    run_command,
    user_part_files,
)
from famx.config.composition import run_hydra
from famx.config.errors import explain_hydra_error, refuse_renamed
from famx.config.overrides import parse_override
from famx.config.schema import (
    fill_defaults,
    register_schemas,
    section_schema,
    to_plain,
)
from famx.config.sections import FinetuneConfig, SweepConfig
from famx.config.text_options import quote_texts, replace_texts, restore_texts
from famx.config.words import hydra_words, split_words, sweep_folder
from famx.experiment.jobs import Job, carry_out
from famx.experiment.resolve import SECTIONS_WITH_PATHS, path_options
from famx.experiment.run import run
from famx.experiment.sweep import Sweep
from famx.experiment.tune import tune
from famx.experiment.user_parts import check_user_parts
from famx.files import report_os_errors
from famx.notation import UserError
from famx.parts import show
from famx.training.loader_config import LoaderConfig
from famx.training.reservation import remove_reserved, reserve_folder
from famx.training.restore import require_optimizer
from famx.training.run_dir import RunDir
from famx.training.sweep_dir import SWEEP_ORDER, save_sweep_order
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
    "logger",
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
    """Prints how the command is used: all settings, and all parts with their hyperparameters."""
    print(__doc__)
    print("-m, --dry (what a sweep would run), -c job (the composed config), --config-dir FOLDER")
    print("hydra.run.dir=FOLDER, hydra.sweep.dir=FOLDER, hydra/launcher=NAME, --version")
    print("Set options by KEY=VALUE, parts by ROOM=NAME and their options by ROOM.KEY=VALUE:\n")
    return show([])


def train(words: Sequence[str]) -> int:
    """Composes the config, or those of a sweep, and trains; returns the exit status.

    Raises:
        UserError: a mistake on the command line, or in a run.
    """
    # the user's parts are registered first, since they need schemas too
    options, overrides = split_words(words)
    dry = "--dry" in options
    options = [option for option in options if option != "--dry"]
    if dry and "--multirun" not in options:
        raise UserError("--dry shows the runs of a sweep: it needs -m")
    user_parts = import_user_parts(overrides)
    runs = Runs(user_parts, user_part_files(overrides), checks=not dry)
    register_schemas(**SECTION_TYPES)
    overrides = quote_texts(overrides, is_sweep="--multirun" in options)
    if find_override("sweep.tune", overrides) not in (None, "null"):
        if dry:
            raise UserError("--dry cannot show the runs of sweep.tune: each depends on the others")
        settings = SweepConfig(**sweep_options(overrides))
        return tune(options, overrides, runs.build, settings)
    compose_runs(runs, options, overrides)
    if not runs.jobs:
        return 0
    if "--multirun" in options and "RANK" not in os.environ:
        return carry_out_sweep(runs.jobs, runs.settings, dry)
    return max(train_job(job) for job in runs.jobs)


def compose_runs(runs: "Runs", options: Sequence[str], overrides: Sequence[str]) -> None:
    """Lets Hydra compose the config of a run, or those of a sweep.

    Raises:
        UserError: a mistake on the command line.
    """
    for word in overrides:
        override = parse_override(word)
        if override is not None and override.is_interval_sweep():
            raise UserError(
                f"{word} is an interval, of which only a search chooses values: "
                "add sweep.tune=dev/loss, or list the values"
            )
    if "--multirun" in options:
        overrides, runs.texts = replace_texts(overrides)
    words = hydra_words(options, overrides)
    runs.has_typed_folder = find_override("hydra.run.dir", words) is not None
    # an error before the runs are known is about the command line
    try:
        results = run_hydra(runs.accept, options, words)
    except Exception as error:
        remove_unused_folders(sweep_folder(words), runs.jobs)
        if runs.started or isinstance(error, UserError):
            raise
        mistake = explain_hydra_error(error, overrides, options)
        if mistake is None:
            raise
        raise mistake from error
    # not inside of Hydra, which would add its own lines to an error
    values = [result.return_value for result in results]
    refused = [value for value in values if isinstance(value, UserError)]
    if refused:
        remove_unused_folders(sweep_folder(words), runs.jobs)
        raise refused[0]


class Runs:
    """Collects the runs that Hydra composes.

    Args:
        user_parts: name and digest of the files of the user's own parts.
        files: their paths.
        checks: whether parts are checked before they train.

    Attributes:
        texts: texts of the command line by the values that stand for them.
        has_typed_folder: whether the command line names the folder of a run.
    """

    def __init__(self, user_parts: list[dict[str, str]], files: Sequence[Path], checks: bool):
        self.user_parts = user_parts
        self.files = tuple(file.resolve() for file in files)
        self.started = False
        self.texts: dict[str, str] = {}
        self.has_typed_folder = False
        self.jobs: list[Job] = []
        self.settings = SweepConfig()
        self.checks = checks

    def accept(self, config: Container) -> float | UserError | None:
        """Collects a run; another launcher than Hydra's basic one, on another machine, trains it.

        Returns:
            The best score on dev of a run that is trained here; the mistake if the run is refused,
            as a value, since an exception would end the sweep, and what this object stores in
            another process would be lost.
        """
        hydra_config = HydraConfig.get()
        is_basic = hydra_config.runtime.choices["hydra/launcher"] == "basic"
        self.started = not is_basic
        folder = Path(hydra_config.runtime.output_dir)
        if hydra_config.mode is RunMode.RUN and not self.has_typed_folder:
            # a run of the same second may have the same name
            folder = Path(reserve_folder(str(folder)))
        try:
            self.settings = SweepConfig(**to_plain(config)["sweep"])
            job = self.build(config, folder)
            if hydra_config.mode is RunMode.MULTIRUN and not is_basic:
                return carry_out(job, self.settings.mixed_code).score
        except UserError as error:
            remove_reserved(folder)
            return error
        if any(folder == other.folder for other in self.jobs):
            return UserError(f"two runs of this sweep are {folder.name}: its runs must differ")
        self.jobs.append(job)
        return None

    def build(self, config: Container, folder: Path) -> Job:
        """Builds a run from its composed config."""
        plain = restore_texts(to_plain(config), self.texts) | {"famx_parts": self.user_parts}
        refuse_renamed(plain, "the config")
        if self.checks:
            check_user_parts(plain)
        return Job(plain, folder, self.files)


def train_job(job: Job) -> int:
    """Trains a run in this process; returns the exit status.

    Raises:
        UserError: the run is refused.
    """
    try:
        with report_os_errors(job.folder):
            results = run(job.config, job.folder)
    except UserError:
        # only a single process removes its empty folder: several would race
        if "RANK" not in os.environ:
            remove_reserved(job.folder)
        raise
    return 128 + results["stopped_by"] if "stopped_by" in results else 0


def sweep_options(overrides: Sequence[str]) -> dict[str, Any]:
    """Returns the options `sweep.KEY=VALUE` of a command line.

    Raises:
        UserError: there is no such option, or its value has another type.
    """
    options = {}
    for word in overrides:
        key, _, value = word.lstrip("+").partition("=")
        section, _, option = key.partition(".")
        if section == "sweep":
            options[option] = parse_yaml(key, value)
    return fill_defaults(section_schema(SweepConfig), options, "sweep")


def carry_out_sweep(jobs: Sequence[Job], settings: SweepConfig, dry: bool) -> int:
    """Trains the runs of a sweep, or prints what would run; returns the exit status."""
    folder = jobs[0].folder.parent
    sweep = Sweep(folder, jobs, len(jobs), settings, Console(highlight=False, markup=False))
    try:
        if dry:
            return sweep.print_plan()
        save_sweep_order(folder, [job.name for job in jobs])
        return sweep.carry_out()
    finally:
        remove_unused_folders(folder, jobs)


def remove_unused_folders(folder: Path | None, jobs: Sequence[Job]) -> None:
    """Removes the folders that Hydra has made for a sweep and its runs, if nothing is in them."""
    for job in jobs:
        if job.folder.is_dir():
            remove_reserved(job.folder)
    if folder is None or not folder.is_dir():
        return
    unused = ("multirun.yaml", ".lock", SWEEP_ORDER)
    if all(file.name in unused for file in folder.iterdir()):
        for name in unused:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


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
    require_optimizer(run_dir)
    trust_edits = find_override("trust_edits", words) == "true"
    if not trust_edits:
        run_dir.require_unedited("trust_edits=true")
    config = run_dir.load_config()
    import_user_parts(words, run_dir.path, config["famx_parts"])
    # changed options; data and language models may have moved
    paths = []
    for section in SECTIONS_WITH_PATHS:
        paths += [f"{section}.{option}" for option in path_options(section, config[section])]
    for word in words:
        key, equals, value = word.lstrip("+").partition("=")
        if key in ("resume", "famx_parts") or word == "trust_edits=true":
            continue
        if key not in (*RESUMABLE, *paths) or not equals:
            raise UserError(
                f"{word} cannot change on resume; these can, each with =VALUE: "
                f"{', '.join((*RESUMABLE, *paths))}"
            )
        section, _, option = key.partition(".")
        parsed = value if key in paths else parse_yaml(key, value)
        if option:
            config[section][option] = parsed
        else:
            config[section] = parsed
    # checks the types of changed options, and adds the defaults of options newer than the run
    for section, fields in (SECTION_TYPES | {"finetune": FinetuneConfig}).items():
        if not isinstance(config[section], dict):
            raise UserError(f"{run_dir} is damaged: {section} in its config is no mapping")
        config[section] = fill_defaults(section_schema(fields), config[section], section)
    check_user_parts(config)
    results = run(config, run_dir.path, resume=True, trust_edits=trust_edits)
    return 128 + results["stopped_by"] if "stopped_by" in results else 0


if __name__ == "__main__":
    run_command(
        main,
        memory="use a smaller loader.batch_seconds or loader.batch_tokens, or a smaller model; "
        "saved checkpoints remain",
    )
