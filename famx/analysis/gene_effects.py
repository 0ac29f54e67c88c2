"""What each gene of drawn layers does for the errors, by itself, and how far chance alone would take that."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from famx.analysis.runs import Setting, format_value
from famx.analysis.significance import CONFIDENCE, verdict_of


class Effect(NamedTuple):
    """What a gene adds to the errors, for each layer that has it, and the interval of that.

    Args:
        gene: a number of heads, a room's part, or a hyperparameter of one.
        runs: in which some layer has it.
    """

    gene: str
    runs: int
    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        return verdict_of(self.low, self.high)


def marginal_effects(arms: Sequence[Setting]) -> list[Effect]:
    """The marginal effect of each gene of drawn layers, the best first; their intervals hold all at once (Bonferroni).

    The slope of an arm's mean rate over the number of layers that have the gene, by least squares, and Student's t.
    Where layers are drawn, what else they are is chance. Arms that differ in more than their layers' genes have levels
    of their own, a hyperparameter is held against others of its part, and what has diverged is left out.
    """
    rates = np.array([np.mean([run.rate for run in arm.runs.values()]) for arm in arms])
    kept = np.isfinite(rates)
    drawn, rates = (
        [next(iter(arm.runs.values())) for arm, keep in zip(arms, kept, strict=True) if keep],
        rates[kept],
    )
    genes = [Counter(gene for layer in run.layers for gene in _genes(layer)) for run in drawn]
    counts = {
        gene: np.array([own[gene] for own in genes], dtype=float)
        for gene in sorted(set().union(*genes))
    }
    choices = Counter(place for place, _ in counts)
    others = [json.dumps([len(run.layers), *_others(run.settings)]) for run in drawn]
    levels = np.array(
        [[other == level for level in dict.fromkeys(others)] for other in others], dtype=float
    )
    found = []
    for gene, count in counts.items():
        part = counts.get(tuple(gene[0].split(" ")[0].split("=")))
        basis = levels if part is None else np.column_stack([levels, part])
        freedom = len(rates) - int(np.linalg.matrix_rank(basis)) - 1
        away, rest = _beside(basis, count), _beside(basis, rates)
        if (
            choices[gene[0]] < 2
            or np.count_nonzero(count) < 2
            or freedom < 2
            or np.abs(away).max() < 1e-9
        ):
            continue
        slope = away @ rest / (away @ away)
        error = (np.square(rest - slope * away).sum() / freedom / (away @ away)) ** 0.5
        found.append(("=".join(gene), np.count_nonzero(count), slope, error, freedom))
    tail = 1 - (1 - CONFIDENCE) / 2 / max(1, len(found))
    reaches = [
        (gene, runs, slope, error * stdtrit(freedom, tail))
        for gene, runs, slope, error, freedom in found
    ]
    effects = [
        Effect(gene, runs, slope, slope - reach, slope + reach)
        for gene, runs, slope, reach in reaches
    ]
    return sorted(effects, key=lambda effect: effect.mean)


def _others(settings: Mapping[str, str]) -> list[str]:
    """The settings that are none of those that say how layers are drawn."""
    return [
        value
        for key, value in settings.items()
        if key != "model.layers" and not key.startswith("model.drawn")
    ]


def _beside(basis: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What of the values the basis does not explain."""
    return values - basis @ np.linalg.lstsq(basis, values, rcond=None)[0]


def _genes(layer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The places where a layer could be another, and what it is there."""
    for room, choice in layer.items():
        if isinstance(choice, Mapping):
            yield room, choice["name"]
            yield from (
                (f"{room}={choice['name']} {key}", format_value(choice[key]))
                for key in choice
                if key != "name"
            )
        else:
            yield room, str(choice)
