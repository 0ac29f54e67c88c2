"""Tunes options: searches for the values with the best score on dev, by Optuna.

The swept options are the search space: `a,b` and `choice(a,b)` are values without an order,
`range(2,9,2)` are integers, `interval(0.1,1)` are numbers, and `tag(log, interval(1e-4,1e-1))` are
numbers that are sampled by their logarithm. The study is a journal in the folder of the sweep, so
that a repeated command continues it up to `sweep.trials` runs.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    QuotedString,
    RangeSweep,
)
from hydra.core.override_parser.types import (
    Sweep as SweptValues,
)
from omegaconf import Container
from rich.console import Console

from famx.config.composition import compose_config
from famx.config.overrides import parse_override
from famx.config.sections import SweepConfig
from famx.config.words import (
    default_sweep_folder,
    experiment_sweep,
    sweep_folder,
)
from famx.experiment.jobs import Job, Outcome, State
from famx.experiment.sweep import Sweep
from famx.notation import UserError
from famx.registry import get
from famx.training.run_dir import RunDir

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution

JOURNAL = "optuna.journal"


class TunedSweep(Sweep):
    """A sweep whose runs are the trials of a study.

    Args:
        folder: folder of the sweep.
        study: the study.
        space: distribution of each tuned option, by key.
        build: builds a run from the words of a trial.
        settings: options of the sweep.
        console: receives a line for each run, and the table.
    """

    def __init__(
        self,
        folder: Path,
        study: "Study",
        space: "Mapping[str, BaseDistribution]",
        build: Callable[[Sequence[str], Path], Job],
        settings: SweepConfig,
        console: Console,
    ):
        self.study = study
        self.space = space
        self.build = build
        self.trials: dict[str, Trial] = {}
        super().__init__(folder, self._sample(), settings.trials, settings, console)

    def _startable(self) -> Iterator[Job]:
        """Yields the runs to start; each depends on the scores of those before it."""
        yield from filter(self._may_start, self.source)

    def _sample(self) -> Iterator[Job]:
        """Yields the runs of trials: first those that were interrupted, then new ones."""
        from optuna.trial import Trial, TrialState

        unfinished = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for frozen in unfinished:
            yield self._job(Trial(self.study, frozen._trial_id))
        while len(self.study.get_trials(deepcopy=False)) < self.settings.trials:
            yield self._job(self.study.ask(dict(self.space)))

    def _job(self, trial: "Trial") -> Job:
        words = [f"{key}={value}" for key, value in trial.params.items()]
        job = self.build(words, self.folder / f"trial={trial.number}")
        self.trials[job.name] = trial
        return job

    def report(self, job: Job, outcome: Outcome) -> None:
        """Tells the study the best score of a run; a failed run has none.

        Raises:
            UserError: the run reports other metrics on dev than `sweep.tune`.
        """
        from optuna.trial import TrialState

        if outcome.state in (State.STOPPED, State.NOT_STARTED):
            return
        trial = self.trials[job.name]
        metric = self.settings.tune
        assert metric is not None
        score = best_score(job, metric) if outcome.state in FINAL else math.nan
        # a run that diverged is a trial without a value
        if math.isfinite(score):
            self.study.tell(trial, score)
        else:
            self.study.tell(trial, state=TrialState.FAIL)

    def print_best(self) -> None:
        """Prints the words of the best trial."""
        if not any(trial.value is not None for trial in self.study.get_trials(deepcopy=False)):
            return
        best = self.study.best_trial
        words = " ".join(f"{key}={value}" for key, value in best.params.items())
        text = f"best of {len(self.study.trials)}: {self.settings.tune} {best.value:.4g} with"
        self.console.print(text, words, markup=False, soft_wrap=True)


FINAL = (State.DONE, State.FINISHED)


def tune(
    options: Sequence[str],
    overrides: Sequence[str],
    build: Callable[[Container, Path], Job],
    settings: SweepConfig,
) -> int:
    """Searches for the options with the best score; returns the exit status.

    Args:
        options, overrides: the command line, from `split_words`.
        build: builds a run from a composed config and its folder.
        settings: options of the sweep.

    Raises:
        UserError: the metric is not one on dev, nothing is swept, or Optuna is not installed.
    """
    if settings.tune is None or not settings.tune.startswith("dev/"):
        raise UserError(
            f"sweep.tune={settings.tune} must be a metric on dev, such as dev/loss: "
            "options that are chosen on test would look better there than they are"
        )
    optuna = _import_optuna()
    swept = experiment_sweep(overrides, options)
    words = [*(f"{key}={values}" for key, values in swept.items()), *overrides]
    space, fixed = split_space(words)
    if not space:
        raise UserError("sweep.tune needs options to search: optim.lr=tag(log,interval(1e-4,1e-2))")
    metric = settings.tune.replace("/", "_")
    name = f"{default_sweep_folder(overrides, sorted(space))}_tuned_{metric}"
    folder = (sweep_folder(overrides) or Path(name)).resolve()
    folder.mkdir(parents=True, exist_ok=True)

    def build_trial(trial_words: Sequence[str], run_folder: Path) -> Job:
        words = [*fixed, *trial_words]
        return build(compose_config(options, words), run_folder)

    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
    )
    sampler = optuna.samplers.TPESampler(seed=0)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    fixed_config = compose_config(options, fixed)
    study = optuna.create_study(
        storage=storage,
        sampler=sampler,
        study_name="famx",
        direction="maximize" if higher_is_better(fixed_config, settings.tune) else "minimize",
        load_if_exists=True,
    )
    sweep = TunedSweep(
        folder, study, space, build_trial, settings, Console(highlight=False, markup=False)
    )
    status = sweep.carry_out()
    sweep.print_best()
    return status


def split_space(words: Sequence[str]) -> "tuple[dict[str, BaseDistribution], list[str]]":
    """Splits overrides into the search space and the fixed words.

    Raises:
        UserError: an option has values that cannot be searched.
    """
    space: dict[str, BaseDistribution] = {}
    fixed = []
    for word in words:
        override = parse_override(word)
        if override is None or not override.is_sweep_override():
            fixed.append(word)
            # a single value replaces a sweep of the experiment
            space.pop(word.partition("=")[0], None)
        else:
            space[override.get_key_element()] = _distribution(override)
    return space, fixed


def _distribution(override: Override) -> "BaseDistribution":
    """Returns the distribution from which Optuna samples an option."""
    from optuna import distributions

    values = override.value()
    log = isinstance(values, SweptValues) and "log" in values.tags
    if isinstance(values, IntervalSweep):
        low, high = float(values.start or 0), float(values.end or 0)
        return distributions.FloatDistribution(low, high, log=log)
    if isinstance(values, RangeSweep):
        numbers = list(values.range())
        if all(isinstance(number, int) for number in numbers):
            step = 1 if log else int(values.step)
            return distributions.IntDistribution(numbers[0], numbers[-1], log=log, step=step)
        return distributions.CategoricalDistribution(numbers)
    if isinstance(values, ChoiceSweep):
        choices = [_text(value) for value in override.sweep_string_iterator()]
        return distributions.CategoricalDistribution(choices)
    raise UserError(f"{override.input_line} cannot be searched: use interval, range or choice")


def _text(value: object) -> str:
    return value.text if isinstance(value, QuotedString) else str(value)


def best_score(job: Job, metric: str) -> float:
    """Returns the best value of a metric that a run has reported; NaN if it reported none on dev.

    Raises:
        UserError: the run reported other metrics on dev.
    """
    best = math.nan
    better = max if higher_is_better(job.config, metric) else min
    names: set[str] = set()
    for line in RunDir(job.folder).metrics_file.read_text().splitlines():
        values = json.loads(line)
        names.update(name for name in values if name.startswith("dev/"))
        value = values.get(metric, math.nan)
        best = value if math.isnan(best) else better(best, value)
    if names and metric not in names:
        raise UserError(f"sweep.tune={metric}: runs report {', '.join(sorted(names))}")
    return best


def higher_is_better(config: Any, metric: str) -> bool:
    """Returns whether a higher value of a metric on dev is better, as the task of a config says."""
    task = get("task", config["task"]["name"])
    return metric.removeprefix("dev/") in task.higher_is_better


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError("sweep.tune needs Optuna: pip install 'famx[tune]'") from error
    return optuna
