"""The effect of each gene of sampled layers on the error rate, with confidence intervals."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from famx.analysis.runs import Run, Setting, format_value
from famx.analysis.significance import CONFIDENCE, verdict_of

MIN_FREEDOM = 2  # degrees of freedom of a fit


class Gene(NamedTuple):
    """One choice of a sampled layer.

    Args:
        locus: the option that is chosen: `n_heads`, a room, or `room=part key`.
        value: the chosen value.
    """

    locus: str
    value: str

    @property
    def part(self) -> "Gene | None":
        """The gene of the part that a hyperparameter belongs to."""
        room_and_part, _, key = self.locus.partition(" ")
        if not key:
            return None
        room, _, part = room_and_part.partition("=")
        return Gene(room, part)


class Effect(NamedTuple):
    """The error rate that a gene adds for each layer that has it, with its interval.

    Args:
        gene: a number of heads, a room's part, or a hyperparameter of one, as `locus=value`.
        runs: number of models with such a layer.
        mean: the estimate.
        low: lower end of the interval.
        high: upper end of the interval.
        higher_is_better: whether a higher rate is better.
    """

    gene: str
    runs: int
    mean: float
    low: float
    high: float
    higher_is_better: bool = False

    @property
    def verdict(self) -> str:
        """Returns whether the gene helps; `not shown` if the interval includes 0."""
        return verdict_of(self.low, self.high, self.higher_is_better)


class _Fit(NamedTuple):
    """A least-squares slope, its standard error, and the degrees of freedom of the error."""

    slope: float
    standard_error: float
    freedom: int


def marginal_effects(settings: Sequence[Setting]) -> list[Effect]:
    """Estimates the marginal effect of each gene of sampled layers, the best first.

    The effect is the least-squares slope of a setting's mean rate over the number of its layers
    that have the gene. Since layers are sampled, their other genes act as noise, and Student's t
    gives the interval. Settings that differ in more than the genes of their layers have separate
    intercepts (levels). A hyperparameter is compared with other values for the same part. Settings
    that have diverged are left out. The intervals hold simultaneously (Bonferroni).
    """
    # settings whose rate is finite, their gene counts and their levels
    rates = np.array([setting.mean_rate for setting in settings])
    is_finite = np.isfinite(rates)
    rates = rates[is_finite]
    runs = []
    for setting, finite in zip(settings, is_finite, strict=True):
        if finite:
            runs.append(next(iter(setting.runs.values())))
    higher_is_better = any(run.higher_is_better for run in runs)
    counts = _gene_counts(runs)
    levels = _levels(runs)

    # one fit for each gene that varies
    n_values = Counter(gene.locus for gene in counts)
    fits: dict[Gene, _Fit] = {}
    for gene, count in counts.items():
        if n_values[gene.locus] < 2 or np.count_nonzero(count) < 2:
            continue
        part_count = counts.get(gene.part) if gene.part else None
        basis = levels if part_count is None else np.column_stack([levels, part_count])
        fit = _fit(basis, count, rates)
        if fit is not None:
            fits[gene] = fit

    # intervals
    tail = 1 - (1 - CONFIDENCE) / 2 / max(1, len(fits))
    effects = []
    for gene, fit in fits.items():
        name = f"{gene.locus}={gene.value}"
        reach = fit.standard_error * stdtrit(fit.freedom, tail)
        n_runs = int(np.count_nonzero(counts[gene]))
        bounds = (fit.slope - reach, fit.slope + reach)
        effects.append(Effect(name, n_runs, fit.slope, *bounds, higher_is_better))
    return sorted(effects, key=lambda effect: effect.mean, reverse=higher_is_better)


def _gene_counts(runs: Sequence[Run]) -> dict[Gene, np.ndarray]:
    """Returns, for each gene, the number of layers that have it in each run."""
    genes_by_run = []
    for run in runs:
        genes_by_run.append(Counter(gene for layer in run.layers for gene in _genes(layer)))
    counts = {}
    for gene in sorted(set().union(*genes_by_run)):
        counts[gene] = np.array([genes[gene] for genes in genes_by_run], dtype=float)
    return counts


def _levels(runs: Sequence[Run]) -> np.ndarray:
    """Returns (runs, levels): 1 for runs of the same depth and settings, except their layers."""
    descriptions = []
    for run in runs:
        values = []
        for key, value in run.settings.items():
            if key != "model.layers" and not key.startswith("model.drawn"):
                values.append(value)
        descriptions.append(json.dumps([len(run.layers), *values]))
    # one column per level
    columns = []
    for level in dict.fromkeys(descriptions):
        columns.append([description == level for description in descriptions])
    return np.ascontiguousarray(np.array(columns, dtype=float).T)


def _fit(basis: np.ndarray, count: np.ndarray, rates: np.ndarray) -> _Fit | None:
    """Fits rates = basis · c + slope · count; None if the runs do not determine the slope."""
    # the parts of both that the basis does not explain
    freedom = len(rates) - int(np.linalg.matrix_rank(basis)) - 1
    x = _residual(basis, count)
    y = _residual(basis, rates)
    if freedom < MIN_FREEDOM or np.abs(x).max() < 1e-9:
        return None
    # least squares through the origin
    slope = x @ y / (x @ x)
    variance = np.square(y - slope * x).sum() / freedom / (x @ x)
    return _Fit(slope, variance**0.5, freedom)


def _residual(basis: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns the residual of the values after a fit of the basis."""
    return values - basis @ np.linalg.lstsq(basis, values, rcond=None)[0]


def _genes(layer: Mapping[str, Any]) -> Iterator[Gene]:
    """Yields the genes of a layer: its numbers, its parts, and their hyperparameters."""
    for room, choice in layer.items():
        if not isinstance(choice, Mapping):
            yield Gene(room, str(choice))
            continue
        yield Gene(room, choice["name"])
        for key, value in choice.items():
            if key != "name":
                yield Gene(f"{room}={choice['name']} {key}", format_value(value))
