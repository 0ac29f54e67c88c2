"""Tries settings on all tasks of the panel: python -m famx.panel [--minutes M] attention=worm"""

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import Container
from rich.console import Console

from famx import files
from famx.analysis.panel import (
    Entry,
    Result,
    choose,
    markdown,
    mean_over_seeds,
    read_entries,
    read_result,
    rows,
    table,
)
from famx.config.command import Parser, import_user_parts, run_command, user_part_files
from famx.config.composition import compose_config
from famx.config.errors import explain_hydra_error
from famx.config.overrides import parse_override
from famx.config.schema import register_schemas
from famx.config.sections import SweepConfig
from famx.config.text_options import quote_texts
from famx.config.words import WITHOUT_FOLDER, hydra_words, sweep_folder
from famx.experiment.jobs import Job, State
from famx.experiment.sweep import Sweep
from famx.notation import UserError
from famx.train import SECTION_TYPES, Runs, remove_unused_folders, sweep_options

MIN_WIDTH = 120  # of the table, in characters
RESERVED = ("experiment", "resume", "data.root", "data.path", "hydra.run.dir", "sweep.tune")


def main() -> int:
    """Trains the tasks one after the other, and prints their scores beside the references.

    Returns:
        The exit status: 0 if at least one task has a score and no run has failed.

    Raises:
        UserError: a mistake on the command line, also one that all tasks refuse.
    """
    arguments = build_parser().parse_intermixed_args()
    names = [name for name in (arguments.only or "").split(",") if name]
    if arguments.minutes is not None and not arguments.minutes > 0:
        raise UserError(f"--minutes {arguments.minutes:g} must be more than 0")
    seeds = _read_seeds(arguments.seeds)
    entries = choose(_entries_of(seeds), names, arguments.minutes)
    _check_overrides(arguments.overrides, has_seeds=arguments.seeds is not None)
    settings = SweepConfig(**sweep_options(arguments.overrides))
    console = Console(highlight=False, markup=False, width=max(MIN_WIDTH, Console().width))
    minutes = sum(entry.seconds for entry in entries) / 60
    tasks = ", ".join(entry.name for entry in entries)
    plural = "" if len(entries) == 1 else "s"
    console.print(f"{len(entries)} task{plural}, about {minutes:.0f} minutes on two cores: {tasks}")

    # the runs, and the sentences of tasks that the overrides or the data do not fit
    folder = (sweep_folder(arguments.overrides) or _default_folder(arguments.overrides)).resolve()
    jobs, refused = compose(entries, arguments.data, arguments.overrides, folder, seeds)
    if not jobs:
        # one sentence, if it is the same for all
        raise UserError(next(iter(refused.values())))
    all_jobs = [job for by_seed in jobs.values() for job in by_seed.values()]
    sweep = Sweep(folder, all_jobs, len(all_jobs), settings, console)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for sentence in refused.values():
            console.print(f"refused: {sentence}", soft_wrap=True)
        if arguments.dry:
            return sweep.print_plan()
        status = sweep.carry_out()
    finally:
        remove_unused_folders(folder, all_jobs)

    # the table
    outcomes = dict(refused)
    for entry in entries:
        if entry.name in jobs:
            by_seed = {seed: _outcome(sweep, job, entry) for seed, job in jobs[entry.name].items()}
            outcomes[entry.name] = mean_over_seeds(by_seed)
    title = " ".join(["famx panel", *arguments.overrides])
    console.print(table(rows(entries, outcomes), title))
    if any(isinstance(outcome, Result) for outcome in outcomes.values()):
        # with the scores of earlier calls for other tasks
        outcomes = _earlier_results(folder, seeds) | outcomes
        known = [entry for entry in read_entries() if entry.name in outcomes]
        files.write_atomic(folder / "panel.md", markdown(rows(known, outcomes), title))
        console.print(f"table: {folder / 'panel.md'}", soft_wrap=True)
        return 0 if status == 2 else status
    return status


def build_parser() -> Parser:
    """Builds the parser of the command line."""
    parser = Parser(
        prog="python -m famx.panel",
        description="Trains the tasks of conf/experiment/panel with the same settings, and prints "
        "their scores beside those of others. A repeated command skips finished runs and resumes "
        "interrupted ones.",
    )
    parser.add_argument(
        "--minutes", type=float, help="trains what fits, the quickest first; default: all tasks"
    )
    parser.add_argument("--only", metavar="NAME,...", help="names of tasks; default: all")
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        type=Path,
        help="folder with yesno, fsdd, libri_dev_clean_half and text; without it, only tasks whose "
        "data famx makes are trained",
    )
    parser.add_argument(
        "--seeds",
        metavar="N,...",
        help="trains each task with each of these seeds, and prints the mean; default: the seed of "
        "the settings",
    )
    parser.add_argument("--dry", action="store_true", help="shows what would run")
    parser.add_argument(
        "overrides",
        metavar="KEY=VALUE",
        nargs="*",
        default=[],
        help="settings of all tasks, such as attention=myelinated",
    )
    return parser


def compose(
    entries: Sequence[Entry],
    data: Path | None,
    overrides: Sequence[str],
    folder: Path,
    seeds: Sequence[int | None],
) -> tuple[dict[str, dict[int | None, Job]], dict[str, Result | str]]:
    """Composes the runs of each task.

    Returns:
        The runs by task and seed, and the sentence of each task that has none.
    """
    user_parts = import_user_parts(overrides)
    runs = Runs(user_parts, user_part_files(overrides), checks=True)
    register_schemas(**SECTION_TYPES)
    jobs: dict[str, dict[int | None, Job]] = {}
    refused: dict[str, Result | str] = {}
    for entry in entries:
        option, _, path = entry.data.partition("=")
        words = [f"experiment=panel/{entry.name}", *overrides]
        if data is not None and path:
            words.insert(1, f"{option}={data.resolve() / path}")
        try:
            by_seed = {}
            for seed in seeds:
                of_seed = [] if seed is None else [f"seed={seed}"]
                config = _compose([*words, *of_seed])
                by_seed[seed] = runs.build(config, _run_folder(folder, entry, seed))
            # a mistake in an override comes first, since it is in all tasks
            _require_data(entry, data)
            jobs[entry.name] = by_seed
        except UserError as error:
            refused[entry.name] = str(error)
    return jobs, refused


def _read_seeds(text: str | None) -> list[int | None]:
    """Returns the seeds of `--seeds`, [None] for that of the settings.

    Raises:
        UserError: it is no list of different seeds.
    """
    if text is None:
        return [None]
    words = text.split(",")
    if not all(word.isascii() and word.isdigit() for word in words):
        raise UserError(f"--seeds {text}: expected numbers such as 0,1,2")
    seeds: list[int | None] = [int(word) for word in words]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text}: each seed must be named once")
    return seeds


def _entries_of(seeds: Sequence[int | None]) -> list[Entry]:
    """Returns all tasks, with the time of all seeds."""
    return [entry._replace(seconds=len(seeds) * entry.seconds) for entry in read_entries()]


def _run_folder(folder: Path, entry: Entry, seed: int | None) -> Path:
    return folder / (entry.name if seed is None else f"{entry.name}_seed{seed}")


def _compose(words: Sequence[str]) -> Container:
    """Returns the config of a command line.

    Raises:
        UserError: a mistake on it.
    """
    quoted = quote_texts(words, is_sweep=False)
    try:
        return compose_config([], hydra_words([], quoted))
    except HydraException as error:
        mistake = explain_hydra_error(error, quoted, [])
        if mistake is None:
            raise
        raise mistake from error


def _require_data(entry: Entry, data: Path | None) -> None:
    """Checks that there is the file or folder of the data of a task.

    Raises:
        UserError: there is none.
    """
    if not entry.data:
        return
    if data is None:
        raise UserError(f"{entry.name} needs --data FOLDER, with {entry.path} in it")
    if not (data / entry.path).exists():
        raise UserError(f"{entry.name} needs {entry.path} in --data {data}, which has none")


def _check_overrides(overrides: Sequence[str], has_seeds: bool) -> None:
    """Checks that the overrides set options, and none that the panel sets.

    Raises:
        UserError: one of them does not.
    """
    for word in overrides:
        key, equals, _ = word.lstrip("+").partition("=")
        if not equals:
            raise UserError(f"{word} is not KEY=VALUE")
        if key in RESERVED:
            raise UserError(f"{word}: the panel sets this option itself for each of its tasks")
        if key == "seed" and has_seeds:
            raise UserError(f"{word}: --seeds sets the seed")
        override = parse_override(word)
        if override is not None and override.is_sweep_override():
            raise UserError(f"{word} has several values: call the panel once for each of them")


def _default_folder(overrides: Sequence[str]) -> Path:
    """Returns the folder of the panel with these overrides, the same for the same ones."""
    words = sorted(word for word in overrides if not word.startswith(WITHOUT_FOLDER))
    if not words:
        return Path("outputs/panel")
    keys = "_".join(word.partition("=")[0].rpartition(".")[2] for word in words)
    digest = hashlib.sha256("\n".join(words).encode()).hexdigest()[:6]
    return Path(f"outputs/panel_{keys[:80]}_{digest}")


def _earlier_results(folder: Path, seeds: Sequence[int | None]) -> dict[str, Result | str]:
    """Returns the scores of the tasks of a folder, those that have one with each seed."""
    results: dict[str, Result | str] = {}
    for entry in read_entries():
        with contextlib.suppress(UserError):
            by_seed = {seed: read_result(_run_folder(folder, entry, seed), entry) for seed in seeds}
            results[entry.name] = mean_over_seeds(by_seed)
    return results


def _outcome(sweep: Sweep, job: Job, entry: Entry) -> Result | str:
    """Returns the score of a run that has ended, or the sentence why it has none."""
    outcome = sweep.outcomes[job.name]
    if outcome.state not in (State.DONE, State.FINISHED):
        return outcome.message or outcome.state.value
    try:
        return read_result(job.folder, entry)
    except UserError as error:
        return str(error)


if __name__ == "__main__":
    run_command(main)
