"""Compares the settings of scored runs: a table, and notes on how to read it."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich import box
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from famx.analysis.gene_effects import marginal_effects
from famx.analysis.runs import (
    ERROR_UNITS,
    Run,
    Setting,
    UnscoredError,
    group_by_setting,
    read_run,
    require_same_code,
    title,
)
from famx.analysis.significance import CONFIDENCE, Difference, differences
from famx.notation import UserError

log = logging.getLogger(__name__)

MIN_UTTERANCES = 50  # with fewer, bootstrap intervals are too short


class Comparison(NamedTuple):
    """All settings that were scored on one test.

    Args:
        title: description of the test.
        settings: the settings, the baseline first.
        differences: differences of all other settings from the baseline.
    """

    title: str
    settings: list[Setting]
    differences: list[Difference]

    @property
    def runs(self) -> list[Run]:
        return [run for setting in self.settings for run in setting.runs.values()]

    @property
    def is_fraction(self) -> bool:
        """True if rates are shown in percent, and differences in points."""
        return self.runs[0].is_fraction

    @property
    def better(self) -> str:
        """Whether a lower or a higher rate is better, in words."""
        return "higher" if self.runs[0].higher_is_better else "lower"

    @property
    def unit(self) -> str:
        """The unit of a difference: points of a percentage, or the metric itself."""
        return "points" if self.is_fraction else self.runs[0].metric

    @property
    def scale(self) -> int:
        """The factor of displayed numbers: error rates are shown in percent, losses unchanged."""
        return 100 if self.is_fraction else 1

    def format_rate(self, rate: float, sign: str = "") -> str:
        """Returns a rate as text, or with sign="+" a difference."""
        digits = 1 if self.is_fraction else 3
        # z: a difference that rounds to zero is not written as -0.0
        return f"{self.scale * rate:{sign}z.{digits}f}"

    def format_interval(self, low: float, high: float) -> str:
        """Returns the interval of a difference as text."""
        return f"{self.format_rate(low, '+')} to {self.format_rate(high, '+')}"


def compare(
    folders: Sequence[Path],
    split: str,
    metric: str | None,
    mixed_code: bool = False,
    baseline: str | None = None,
    trust_edits: bool = False,
) -> list[Comparison]:
    """Compares the runs of each test.

    Args:
        split, metric: the score, as for `read_run`.
        mixed_code: whether runs of different code are compared.
        baseline: words of the setting that the others are compared with, such as `optim=adamw`;
            None for the first.
        trust_edits: whether runs are compared whose config has changed since their training.

    Raises:
        UserError: a folder is not a run, a run is damaged or edited, runs were trained with
            different code, or none has a score of the metric on the split.
    """
    # runs by test, without those that are not scored
    runs_by_test: dict[str, list[Run]] = {}
    errors: list[UnscoredError] = []
    for folder in folders:
        try:
            run = read_run(folder, split, metric, trust_edits)
        except UnscoredError as error:
            errors.append(error)
        else:
            runs_by_test.setdefault(run.test, []).append(run)
    if not runs_by_test:
        raise errors[0]
    if errors:
        log.warning("%d of %d runs are omitted: %s", len(errors), len(folders), errors[0])

    # one comparison per test
    all_runs = [run for runs in runs_by_test.values() for run in runs]
    if not mixed_code:
        require_same_code(all_runs)
    comparisons = []
    for runs in runs_by_test.values():
        settings = _with_baseline_first(group_by_setting(runs), baseline)
        comparisons.append(Comparison(title(runs, all_runs), settings, differences(settings)))
    return comparisons


def _with_baseline_first(settings: list[Setting], baseline: str | None) -> list[Setting]:
    """Returns the settings with the one first whose label contains the words of the baseline.

    Raises:
        UserError: none or several contain them.
    """
    if baseline is None:
        return settings
    words = baseline.split()
    matching = [setting for setting in settings if set(words) <= set(setting.label.split())]
    if len(matching) != 1:
        labels = "; ".join(setting.label.replace("\n", " ") for setting in settings)
        raise UserError(
            f"--baseline {baseline} must name one setting, and names {len(matching)} of: {labels}"
        )
    return [*matching, *(setting for setting in settings if setting is not matching[0])]


def table(comparison: Comparison) -> Table:
    """Returns a table with one row per setting: the mean over its seeds, and the difference.

    Below each number is the range of the seeds or the interval.
    """
    # steps and parameters have a column if they differ
    headings = {"steps": "steps", "parameters": "params"}
    costs = []
    for name in headings:
        if len({getattr(run, name) for run in comparison.runs}) > 1:
            costs.append(name)
    mean_heading = "mean %" if comparison.is_fraction else "mean"
    if any(len(setting.runs) > 1 for setting in comparison.settings):
        mean_heading += "\nmin to max"  # of the seeds; the table's other ranges are intervals
    columns = ["seeds", *(headings[name] for name in costs), mean_heading, "difference", "verdict"]

    # one row per setting; the baseline has no difference
    rows = _new_table(Text(comparison.title), "settings", columns)
    rows.title_style = "bold"
    for i, setting in enumerate(comparison.settings):
        difference = comparison.differences[i - 1] if i > 0 else None
        runs = list(setting.runs.values())
        rates = np.array([run.rate for run in runs])
        seeds = f"{len(runs)}"
        if difference and difference.pairs < len(runs):
            seeds += f"\n{difference.pairs} shared"
        mean = comparison.format_rate(rates.mean())
        if len(runs) > 1:
            low = comparison.format_rate(rates.min())
            high = comparison.format_rate(rates.max())
            mean += f"\n{low} to {high}"
        rows.add_row(
            Text(setting.label),
            seeds,
            *_format_costs(runs, costs),
            mean,
            _format_difference(comparison, difference),
            difference.verdict if difference else "",
        )
    return rows


def gene_table(comparison: Comparison) -> Table | None:
    """Returns a table of the effects of genes of sampled layers; None if there are too few."""
    # settings whose layers were sampled or listed
    sampled = []
    for setting in comparison.settings:
        if all(run.layers for run in setting.runs.values()):
            sampled.append(setting)
    effects = marginal_effects(sampled)
    if not effects:
        return None
    columns = ["runs", comparison.unit, "interval", "verdict"]
    rows = _new_table(f"effect of a layer with a gene, {len(sampled)} models", "gene", columns)
    for effect in effects:
        rows.add_row(
            Text(effect.gene),
            f"{effect.runs}",
            comparison.format_rate(effect.mean, "+"),
            comparison.format_interval(effect.low, effect.high),
            effect.verdict,
        )
    return rows


def notes(comparison: Comparison) -> Iterator[str]:
    """Yields notes on how to read the table, one sentence each."""
    # the runs
    runs = comparison.runs
    differences = comparison.differences
    shared_costs = _format_shared_costs(runs)
    if shared_costs:
        yield f"Each run: {shared_costs}."
    yield from _cautions(comparison)
    if not differences:
        yield "Only one setting is scored on this test, so there is nothing to compare."
        return
    # how to read a difference and its interval
    yield (
        f"Differences are from the first row, {comparison.better} is better. "
        f"The {CONFIDENCE:.0%} intervals hold simultaneously."
    )
    if any(difference.pairs == 1 for difference in differences):
        yield (
            "One seed does not show how much rates vary between trainings: "
            "train more seeds, seed=0,1,2."
        )
    if runs[0].metric not in ERROR_UNITS:
        yield (
            f"Intervals of a {runs[0].metric} include the variation between seeds, but not that "
            "between test data."
        )
    elif len(runs[0].units) < MIN_UTTERANCES:
        yield f"With fewer than {MIN_UTTERANCES} utterances, intervals are too short."
    # runs that differ in more than their setting
    if len({frozenset(setting.runs) for setting in comparison.settings}) > 1:
        yield "Differences are over the seeds that both settings have, means over all seeds."
    if len({run.steps for run in runs}) > 1:
        yield (
            "Not all runs took the same number of steps: a setting that is better after the same "
            "time may be worse after the same steps, or on another machine."
        )
    if not np.isfinite([run.rate for run in runs]).all():
        yield "Runs with nan or inf have diverged."


def _cautions(comparison: Comparison) -> Iterator[str]:
    """Yields a note on each setting whose parts were not checked before they trained."""
    for setting in comparison.settings:
        if any(run.result.get("check") == "off" for run in setting.runs.values()):
            label = " ".join(setting.label.split())
            yield (
                f"Caution: {label} was trained with check=off: its own parts may break the rules "
                "of their rooms, and see the future of a text."
            )


def _new_table(title: Text | str, first_column: str, columns: Sequence[str]) -> Table:
    """Returns an empty table: text in the first column, numbers in the others, then a verdict."""
    rows = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    rows.add_column(first_column, overflow="fold")
    for column in columns:
        justify: JustifyMethod = "left" if column == "verdict" else "right"
        rows.add_column(column, justify=justify, no_wrap=True)
    return rows


def _format_difference(comparison: Comparison, difference: Difference | None) -> str:
    if difference is None or np.isnan(difference.mean):
        return ""
    mean = comparison.format_rate(difference.mean, "+")
    if np.isnan(difference.low):
        return mean
    return f"{mean}\n{comparison.format_interval(difference.low, difference.high)}"


def _format_costs(runs: Sequence[Run], costs: Sequence[str]) -> list[str]:
    """Returns the range over runs of each cost."""
    ranges = []
    for name in costs:
        ranges.append(_format_range([getattr(run, name) for run in runs]))
    return ranges


def _format_shared_costs(runs: Sequence[Run]) -> str:
    """Returns the steps and parameters, if they are the same for all runs."""
    shared = []
    for name in ("steps", "parameters"):
        value = _format_range([getattr(run, name) for run in runs])
        if "\n" not in value:
            shared.append(f"{value} {name}")
    return ", ".join(shared)


def _format_range(numbers: Sequence[int]) -> str:
    """Returns the number that all runs have, or the smallest and the largest."""
    low = _format_count(min(numbers))
    high = _format_count(max(numbers))
    return low if low == high else f"{low}\nto {high}"


def _format_count(number: int) -> str:
    return f"{number:,}" if number < 100_000 else f"{number / 1e6:.2f} M"
