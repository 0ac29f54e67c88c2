"""Whether an idea helped: runs of the same test side by side, and how far chance alone would take them apart."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from famx.config import stored
from famx.model import LAYER
from famx.notation import UserError
from famx.registry import ROOMS
from famx.task.base import edits

CONFIDENCE = 0.95
RESAMPLES = 10_000
UNITS = {"wer": "word", "cer": "char"}


class Run(NamedTuple):
    """One scored run.

    Args:
        settings: all that it was trained by, but for its seed.
        steps: of training.
        test: what it was scored on; runs of one test can be compared.
        errors, units: of each utterance, words or characters of the reference; a loss counts as so many errors in one.
    """

    folder: Path
    settings: dict[str, str]
    seed: int
    steps: int
    metric: str
    test: tuple[str, ...]
    errors: np.ndarray
    units: np.ndarray

    @property
    def rate(self) -> float:
        return float(self.errors.sum() / max(1, self.units.sum()))


class Difference(NamedTuple):
    """How many more errors an arm makes than another, from pairs of runs under one seed, and the interval of that.

    `low` and `high` are NaN where nothing tells how far chance reaches: for a loss, from one seed alone.
    """

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def verdict(self) -> str:
        """Fewer errors are better; what the interval does not tell from no difference is not shown."""
        if np.isnan(self.low):
            return "not known"
        found = "better" if self.high < 0 else "worse" if self.low > 0 else "not shown"
        return found if self.pairs > 1 or found == "not shown" else f"{found}, this seed"


class Comparison(NamedTuple):
    """All that was scored on one test, by settings and seed; the differences are of all settings but the first."""

    test: str
    arms: dict[str, dict[int, Run]]
    differences: list[Difference]

    @property
    def scale(self) -> int:
        """Error rates are told in percent, losses as they are."""
        return 1 if next(iter(next(iter(self.arms.values())).values())).metric == "loss" else 100

    def written(self, rate: float, sign: str = "") -> str:
        """A rate or, with a sign, a difference of two."""
        return f"{self.scale * rate:{sign}.{3 if self.scale == 1 else 1}f}" + " %" * (self.scale > 1 and not sign)


def read(folder: Path, split: str, metric: str | None) -> Run:
    """What a run is and what it scored.

    Args:
        metric: wer, cer or loss; None: the word error rate, or the loss where there are no words.

    Raises:
        UserError: it is no scored run, or not scored by that metric.
    """
    config = stored(folder)
    try:
        scores = json.loads((folder / f"scores.{split}.json").read_text())
        steps = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        lines = (folder / f"hypotheses.{split}.tsv").read_text().splitlines()[1:] if "utterances" in scores else []
        ids, references, hypotheses = ([line.split("\t")[i] for line in lines] for i in range(3))
        size = f"{scores['utterances']:,} utterances" if lines else f"{scores['tokens']:,} tokens"
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder} cannot be read: {error}") from error
    metric = metric or ("wer" if "wer" in scores else "loss")
    if metric not in scores:
        raise UserError(f"{folder} has a loss on {split} and no {metric}, for nothing is recognised there")
    settings = dict(_settings(config))
    if metric == "loss":
        errors, units = np.array([scores["loss"]]), np.ones(1)
    else:
        counts, units = edits(references, hypotheses, UNITS[metric])
        errors = counts.sum(1)
    source = [] if lines else [f"{key}={value}" for key, value in settings.items() if key.startswith("data")]
    test = (f"{split}: {metric if metric == 'loss' else metric.upper()} of {size}", *ids, *references, *source)
    return Run(folder, settings, config["seed"], steps, metric, test, errors, units)


def compare(runs: Sequence[Run]) -> Comparison:
    """Holds the runs of one test against the settings of the first; the intervals hold all at once (Bonferroni)."""
    found = arms(runs)
    base, *others = found.values()
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(others))
    return Comparison(runs[0].test[0], found, [difference(base, other, confidence) for other in others])


def arms(runs: Sequence[Run]) -> dict[str, dict[int, Run]]:
    """The runs of the same settings by their seeds, under the settings that tell them apart.

    A part's hyperparameters are told where they differ among those who wear the part.

    Raises:
        UserError: two runs have the same settings and seed.
    """
    alike: list[tuple[dict[str, str], dict[int, Run]]] = []
    for run in runs:
        arm = next((arm for settings, arm in alike if settings == run.settings), None)
        if arm is None:
            alike.append((run.settings, arm := {}))
        if run.seed in arm:
            raise UserError(f"{arm[run.seed].folder} and {run.folder} have the same settings and seed: leave one out")
        arm[run.seed] = run
    settings = [own for own, _ in alike]
    return {
        "\n".join(f"{key}={value}" for key, value in own.items() if _tells(key, own, settings)) or "all": arm
        for own, arm in alike
    }


def difference(base: Mapping[int, Run], other: Mapping[int, Run], confidence: float = CONFIDENCE) -> Difference:
    """Of the other arm's rate from the base's, over the seeds of both.

    Two chances are in it: which utterances are tested (bootstrap over them, Bisani & Ney 2004) and, from the second
    seed on, how training falls out (Student's t over the seeds; together as Behrens & Fisher have it).

    Args:
        base, other: runs by their seeds.

    Raises:
        UserError: they have no seed in common.
    """
    seeds = sorted(base.keys() & other.keys())
    if not seeds:
        told = [f"{next(iter(arm.values())).folder} has {','.join(map(str, sorted(arm)))}" for arm in (base, other)]
        raise UserError(f"settings are compared under the same seeds, but {' and '.join(told)}")
    more = np.array([other[seed].errors - base[seed].errors for seed in seeds])
    units, rng = base[seeds[0]].units, np.random.default_rng(0)
    rates = more.sum(1) / max(1, units.sum())
    drawn = (rng.integers(len(units), size=(RESAMPLES // 10, len(units))) for _ in range(10))  # all at once are large
    chances = np.concatenate([more.mean(0)[i].sum(1) / np.maximum(1, units[i].sum(1)) for i in drawn])
    if len(seeds) > 1:
        chances += rates.std(ddof=1) * len(seeds) ** -0.5 * rng.standard_t(len(seeds) - 1, RESAMPLES)
    known = len(seeds) > 1 or len(units) > 1
    low, high = np.quantile(chances, [(1 - confidence) / 2, (1 + confidence) / 2]) if known else (np.nan, np.nan)
    return Difference(float(rates.mean()), float(low), float(high), len(seeds))


def _tells(key: str, own: Mapping[str, str], settings: Sequence[Mapping[str, str]]) -> bool:
    """Whether a setting differs among those who wear the same part as `own` does."""
    room = key.partition(".")[0]
    peers = settings if key == room else [other for other in settings if other.get(room) == own.get(room)]
    return len({other[key] for other in peers if key in other}) > 1


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Parts and numbers of a config, each with the words that set it."""
    idle = set(LAYER) - {"norm"} if config["model"].get("layers") else set()  # the list has parts of its own
    for section in ("model", *ROOMS, "kinds", "loader", "trainer"):
        if section not in idle:
            yield section, config[section].get("name", "")
            yield from _leaves(config[section], section)
    yield "init_from", str(config["init_from"])
    yield "famx_parts", " ".join(f"{part['file']}:{part['sha256'][:8]}" for part in config["famx_parts"])


def _leaves(node: Mapping[str, Any], above: str) -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        told = "null" if value is None else str(value)
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}.{key}")
        elif key != "name" and not (key == "layers" and "drawn" in node):  # these follow from what they are drawn from
            yield f"{above}.{key}", told if len(told) < 80 else hashlib.sha256(told.encode()).hexdigest()[:8]
