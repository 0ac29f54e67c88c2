"""Errors of an evaluation: scores by speaker, the most frequent confusions, differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from famx.task.base import Confusion, ErrorCounts, Task

RESAMPLES = 1000
MAX_SPEAKERS = 20
MAX_CONFUSIONS = 10
NOTHING = "-"  # stands for the missing side of an insertion or deletion


class SpeakerScore(NamedTuple):
    """The scores of one speaker.

    Args:
        rates: errors per unit, by the name of the score.
        interval: bounds of the first score with 95 % confidence, over the speaker's utterances.
    """

    speaker: str
    utterances: int
    rates: dict[str, float]
    interval: tuple[float, float]


@dataclass(frozen=True)
class ErrorAnalysis:
    """The errors of an evaluation.

    Args:
        speakers: scores by speaker, the highest error rate first; empty where speakers are not
            known.
        intervals: bounds of each score with 95 % confidence, by a bootstrap over speakers; empty
            with fewer than two speakers.
        confusions: what was taken for what, the most frequent first.
        differences: aligned texts of the utterances with errors.
    """

    speakers: list[SpeakerScore]
    intervals: dict[str, tuple[float, float]]
    confusions: list[Confusion]
    differences: str

    def summary(self) -> dict[str, Any]:
        """Returns speakers and confusions as plain values, for `scores.<split>.json`."""
        values: dict[str, Any] = {}
        if self.speakers:
            values["speakers"] = [
                {"speaker": row.speaker, "utterances": row.utterances} | row.rates
                for row in self.speakers
            ]
        if self.confusions:
            values["confusions"] = [list(row) for row in self.confusions[:100]]
        return values

    def tables(self) -> list[Table]:
        """Returns the speakers and the confusions as tables for the terminal."""
        tables = []
        if len(self.speakers) > 1:
            tables.append(_speaker_table(self.speakers, self.intervals))
        if self.confusions:
            tables.append(_confusion_table(self.confusions))
        return tables


def analyse(
    task: Task,
    ids: Sequence[str],
    references: Sequence[str],
    hypotheses: Sequence[str],
    speaker_of: Mapping[str, str],
) -> ErrorAnalysis:
    """Finds what is wrong in the hypotheses of a split.

    Args:
        speaker_of: speaker of each utterance, by its id; empty where speakers are not known.
    """
    counts = task.error_counts(references, hypotheses)
    names = [speaker_of.get(utterance, "") for utterance in ids]
    # a speaker without a name may be several
    if not counts or not all(names):
        names = []
    speakers = [_score_speaker(name, np.array(names) == name, counts) for name in sorted({*names})]
    first = next(iter(counts), "")
    speakers.sort(key=lambda row: -row.rates[first])
    intervals = {}
    if len(speakers) > 1:
        for name, (errors, units) in counts.items():
            intervals[name] = interval_over_groups(errors, units, names)
    return ErrorAnalysis(
        speakers=speakers,
        intervals=intervals,
        confusions=task.confusions(references, hypotheses),
        differences=task.differences(ids, references, hypotheses),
    )


def interval_over_groups(
    errors: np.ndarray, units: np.ndarray, groups: Sequence[str]
) -> tuple[float, float]:
    """Returns bounds of `sum errors / sum units` with 95 % confidence, by a bootstrap over groups.

    As many groups are sampled, with replacement, each with all of its utterances. With few groups
    the interval is too narrow. (Bisani & Ney 2004, https://doi.org/10.1109/ICASSP.2004.1326009)

    Args:
        errors, units: of each utterance.
        groups: group of each utterance; NaN is returned where all have the same one.
    """
    _, index = np.unique(groups, return_inverse=True)
    n_groups = int(index.max()) + 1
    if n_groups < 2:
        return math.nan, math.nan
    group_errors = np.bincount(index, errors, n_groups)
    group_units = np.bincount(index, units, n_groups)
    sampled = np.random.default_rng(0).integers(n_groups, size=(RESAMPLES, n_groups))
    rates = group_errors[sampled].sum(1) / np.maximum(1, group_units[sampled].sum(1))
    low, high = np.quantile(rates, [0.025, 0.975])
    return float(low), float(high)


def _score_speaker(name: str, is_speaker: np.ndarray, counts: ErrorCounts) -> SpeakerScore:
    rates = {}
    for score, (errors, units) in counts.items():
        rates[score] = float(errors[is_speaker].sum() / max(1, units[is_speaker].sum()))
    errors, units = next(iter(counts.values()))
    utterances = [str(i) for i in range(int(is_speaker.sum()))]
    interval = interval_over_groups(errors[is_speaker], units[is_speaker], utterances)
    return SpeakerScore(name, len(utterances), rates, interval)


def _speaker_table(
    speakers: Sequence[SpeakerScore], intervals: Mapping[str, tuple[float, float]]
) -> Table:
    names = list(speakers[0].rates)
    low, high = intervals[names[0]]
    score = names[0].upper()
    title = f"{score} over {len(speakers)} speakers: {100 * low:.2f} to {100 * high:.2f} % (95 %)"
    if len(speakers) > MAX_SPEAKERS:
        title += f"; the highest {MAX_SPEAKERS}"
    table = Table("speaker", title=title, title_justify="left")
    for column in (score, "95 % interval", *map(str.upper, names[1:]), "utterances"):
        table.add_column(column, justify="right")
    for row in speakers[:MAX_SPEAKERS]:
        low, high = row.interval
        interval = "not known" if math.isnan(low) else f"{100 * low:.2f} to {100 * high:.2f} %"
        first, *others = (f"{100 * rate:.2f} %" for rate in row.rates.values())
        table.add_row(Text(row.speaker), first, interval, *others, str(row.utterances))
    return table


def _confusion_table(confusions: Sequence[Confusion]) -> Table:
    title = "confusions"
    if len(confusions) > MAX_CONFUSIONS:
        title += f", the {MAX_CONFUSIONS} most frequent of {len(confusions)}"
    table = Table("reference", "hypothesis", title=title, title_justify="left")
    table.add_column("times", justify="right")
    for row in confusions[:MAX_CONFUSIONS]:
        pair = (Text(row.reference or NOTHING), Text(row.hypothesis or NOTHING))
        table.add_row(*pair, str(row.times))
    return table
