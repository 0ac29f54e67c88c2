"""The panel: a table of tasks with their references, one file of conf/experiment/panel each.

The comments at the end of such a file are read too: `# KEY: TEXT`, continued by `#   TEXT`.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from famx.config.schema import CONF
from famx.notation import UserError, suggest
from famx.training.run_dir import RunDir

FOLDER = CONF / "experiment" / "panel"
KEYS = ("score", "seconds", "reference", "source", "caveat", "measured")
COLUMNS = ("task", "score", "this run", "measured before", "reference", "caveat")
HIGHER_IS_BETTER = ("accuracy", "bleu", "chrf")
HEADINGS = {"wer": "words wrong", "cer": "characters wrong", "loss": "nats a token"}


class Entry(NamedTuple):
    """A task of the panel.

    Args:
        name: name of its file, `experiment=panel/NAME`.
        split, score: what is compared; `accuracy` is 1 - error, and higher is better.
        seconds: estimated time of training and scoring on two cores.
        reference: figure of others.
        source: where the reference is published.
        caveat: why the two figures may not be the same.
        measured: figure of famx, stored in the file.
        data: option of its data and a path relative to the folder of all data; empty for data that
            needs no files.
    """

    name: str
    split: str
    score: str
    seconds: float
    reference: str
    source: str
    caveat: str
    measured: str
    data: str = ""

    @property
    def path(self) -> str:
        """Path of the data, relative to the folder of all data."""
        return self.data.partition("=")[2]


class Result(NamedTuple):
    """The score of a task, a fraction or a loss.

    Args:
        value: score of a run, or the mean over several seeds.
        low, high: 95 % interval over the tested utterances, NaN where it is not known; of several
            seeds, their lowest and highest score.
        is_fraction: whether it is a fraction.
        seeds: the seeds, if there are several.
    """

    value: float
    low: float
    high: float
    is_fraction: bool
    seeds: tuple[int, ...] = ()


def read_entries(folder: Path = FOLDER) -> list[Entry]:
    """Reads the tasks of the panel, the quickest first.

    Raises:
        UserError: a file lacks a comment, or its time is no number.
    """
    files = sorted(file for file in folder.glob("*.yaml") if not file.name.startswith("_"))
    return sorted(map(read_entry, files), key=lambda entry: entry.seconds)


def read_entry(file: Path) -> Entry:
    """Reads the comments of a file; see `read_entries`."""
    comments: dict[str, str] = {}
    key = ""
    for line in file.read_text(encoding="utf-8").splitlines():
        start = re.fullmatch(r"# ([a-z]+): (.+)", line)
        if start and start[1] in (*KEYS, "data"):
            key = start[1]
            comments[key] = start[2].strip()
        elif key and line.startswith("#   "):
            comments[key] += f" {line[1:].strip()}"
        else:
            key = ""
    for missing in KEYS:
        if missing not in comments:
            raise UserError(f"{file} has no comment `# {missing}: ...`, which the panel needs")
    split, slash, score = comments.pop("score").partition("/")
    if not slash:
        raise UserError(f"{file}: `# score: {split}` is not SPLIT/NAME, such as test/wer")
    seconds = comments.pop("seconds")
    try:
        number = float(seconds)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise UserError(f"{file}: `# seconds: {seconds}` must be a positive number")
    return Entry(file.stem, split, score, number, **comments)


def choose(entries: Sequence[Entry], names: Sequence[str], minutes: float | None) -> list[Entry]:
    """Returns the tasks of these names, as many as fit into the time, the quickest first.

    Args:
        names: names of tasks; empty for all.
        minutes: time of all together; None for no limit.

    Raises:
        UserError: there is no task of a name, or not even the quickest one fits.
    """
    known = [entry.name for entry in entries]
    for name in names:
        if name not in known:
            raise UserError(f"--only {name}: no task of the panel{suggest(name, known)}")
    chosen = [entry for entry in entries if not names or entry.name in names]
    if minutes is None:
        return chosen
    fitting = []
    left = 60 * minutes
    for entry in chosen:
        if entry.seconds <= left:
            fitting.append(entry)
            left -= entry.seconds
    if not fitting:
        quickest = min(chosen, key=lambda entry: entry.seconds)
        raise UserError(
            f"--minutes {minutes:g} is less than the {quickest.seconds / 60:.1f} minutes of "
            f"{quickest.name}, the quickest of these tasks"
        )
    return fitting


def read_result(folder: Path, entry: Entry) -> Result:
    """Reads the score of a run.

    Raises:
        UserError: the run has no such score.
    """
    file = RunDir(folder).scores_file(entry.split)
    name = "error" if entry.score == "accuracy" else entry.score
    try:
        scores = json.loads(file.read_text(encoding="utf-8"))
        if name == "loss":
            return Result(float(scores["loss"]), math.nan, math.nan, is_fraction=False)
        return _result(scores[name], is_accuracy=entry.score == "accuracy")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{file} has no {name}: {type(error).__name__} {error}") from error


def _result(score: Mapping[str, Any], is_accuracy: bool) -> Result:
    rate, low, high = (math.nan if score[key] is None else float(score[key]) for key in BOUNDS)
    is_fraction = bool(score.get("is_fraction", True))
    if is_accuracy:
        return Result(1 - rate, 1 - high, 1 - low, is_fraction)
    return Result(rate, low, high, is_fraction)


BOUNDS = ("rate", "low", "high")


def mean_over_seeds(outcomes: Mapping[int | None, Result | str]) -> Result | str:
    """Returns the mean of the scores by seed, or the first sentence why one has none.

    Args:
        outcomes: score or sentence by seed; None for the only one, that of the settings.
    """
    results = []
    for seed, outcome in outcomes.items():
        if isinstance(outcome, str):
            return outcome if seed is None else f"seed {seed}: {outcome}"
        results.append(outcome)
    if len(results) == 1:
        return results[0]
    values = [result.value for result in results]
    seeds = tuple(seed for seed in outcomes if seed is not None)
    return Result(fmean(values), min(values), max(values), results[0].is_fraction, seeds)


def describe(result: Result) -> str:
    """Returns a score as text, with its 95 % interval, or with the range of its seeds."""
    scale, unit = (100, " %") if result.is_fraction else (1, "")
    digits = 2 if result.is_fraction else 3
    text = f"{scale * result.value:.{digits}f}{unit}"
    if math.isnan(result.low):
        return text
    span = f"{scale * result.low:.{digits}f} to {scale * result.high:.{digits}f}"
    if result.seeds:
        span = f"mean of seeds {', '.join(map(str, result.seeds))}: {span}"
    return f"{text} ({span})"


def direction(entry: Entry) -> str:
    """Returns the name of a score, and whether a lower or a higher one is better."""
    better = "higher" if entry.score in HIGHER_IS_BETTER else "lower"
    return f"{HEADINGS.get(entry.score, entry.score)}, {better} is better"


def rows(entries: Sequence[Entry], outcomes: Mapping[str, Result | str]) -> list[tuple[str, ...]]:
    """Returns the cells of each task, by `COLUMNS`.

    Args:
        outcomes: score by task, or the sentence why there is none.
    """
    cells: list[tuple[str, ...]] = []
    for entry in entries:
        outcome = outcomes[entry.name]
        score = outcome if isinstance(outcome, str) else describe(outcome)
        reference = entry.reference
        if entry.source != "none":
            reference += f" [{entry.source}]"
        caveat = entry.caveat
        cells.append((entry.name, direction(entry), score, entry.measured, reference, caveat))
    return cells


def table(cells: Sequence[Sequence[str]], title: str) -> Table:
    """Returns the panel as a table for the terminal."""
    panel = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_lines=True)
    for column in COLUMNS:
        panel.add_column(column, overflow="fold")
    for row in cells:
        panel.add_row(*map(Text, row))
    return panel


def markdown(cells: Sequence[Sequence[str]], title: str) -> str:
    """Returns the panel as a table of Markdown."""
    caption = "Scores of tests, with 95 % intervals over utterances or the range of seeds."
    lines = [f"# {title}", "", caption, ""]
    lines += [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in cells:
        lines.append(f"| {' | '.join(' '.join(cell.split()).replace('|', '/') for cell in row)} |")
    return "\n".join(lines) + "\n"
