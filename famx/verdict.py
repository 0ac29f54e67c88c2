"""Whether an idea helped: runs of the same test side by side, and how far chance alone would take them apart."""

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from famx.config import command, leaves, stored
from famx.model import LAYER
from famx.notation import UserError
from famx.registry import PARTS, ROOMS, hyperparameters
from famx.task.base import edits

CONFIDENCE = 0.95
RESAMPLES = 10_000
UNITS = {"wer": "word", "cer": "char"}


class UnscoredError(UserError):
    """A run that was not scored as is asked for."""


class Run(NamedTuple):
    """One scored run.

    Args:
        settings: all that it was trained by, but for its seed.
        steps: of training.
        test: what it was scored on, and by; runs of one test can be compared.
        errors, units: of each utterance, words or characters of the reference; a loss counts as so many errors in one.
        layers: what each is made of, if they were listed or drawn.
    """

    folder: Path
    settings: dict[str, str]
    seed: int
    steps: int
    parameters: int
    metric: str
    test: str
    errors: np.ndarray
    units: np.ndarray
    layers: Sequence[Mapping[str, Any]] = ()

    @property
    def rate(self) -> float:
        return float(self.errors.sum() / max(1, self.units.sum()))


class Arm(NamedTuple):
    """The runs of the same settings by their seeds, and the settings that tell them from the other arms."""

    label: str
    runs: dict[int, Run]


class Difference(NamedTuple):
    """How many more errors an arm makes than another, from pairs of runs under one seed, and the interval of that.

    `low` and `high` are NaN where nothing tells how far chance reaches: for a loss from one seed alone, for no pair,
    and where a run has diverged.
    """

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def verdict(self) -> str:
        """Fewer errors are better; what the interval does not tell from no difference is not shown."""
        if np.isnan(self.low):
            return "not known" if self.pairs else "no seed\nin common"
        found = verdict_of(self.low, self.high)
        return found if self.pairs > 1 or found == "not shown" else f"{found},\nthis seed"


def read(folder: Path, split: str, metric: str | None) -> Run:
    """What a run is and what it scored.

    Args:
        metric: wer, cer or loss; None: the word error rate, or the loss where there are no words.

    Raises:
        UnscoredError: not on that split, or not by that metric.
        UserError: it is no run, or damaged.
    """
    config, file = stored(folder), folder / f"scores.{split}.json"
    if not file.is_file():
        again = command("evaluate", str(folder), "--split", split)
        raise UnscoredError(f"{folder} is not scored on {split}; once it is trained, {again} does that")
    try:
        scores, text = json.loads(file.read_text()), None
        counts, units = np.array([[float(scores["loss"])]]), np.ones(1)
        metric = metric or ("wer" if "wer" in scores else "loss")
        if metric not in scores:
            raise UnscoredError(f"{folder} has a loss on {split} and no {metric}, for nothing is recognised there")
        of = f"{scores['utterances']:,} utterances" if "utterances" in scores else f"{scores['tokens']:,} tokens"
        if "utterances" in scores:
            text = _recognised(folder / f"hypotheses.{split}.tsv", scores["utterances"])
        if metric in UNITS:
            counts, units = edits([row[1] for row in text], [row[2] for row in text], UNITS[metric])
        steps = int(json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"])
        with (folder / "groups.tsv").open() as lines:
            parameters = sum(int(group["parameters"]) for group in csv.DictReader(lines, delimiter="\t"))
        settings = dict(_settings(config))
    except UnscoredError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}, scored on {split}, is damaged: {type(error).__name__} {error}") from error
    # a loss is of the units that the text is cut into
    alike = [value for key, value in settings.items() if key.partition(".")[0] in ("data", "task") and metric == "loss"]
    digest = hashlib.sha256(json.dumps([alike, text and [row[:2] for row in text]]).encode()).hexdigest()[:8]
    test = f"{split}: {metric if metric == 'loss' else metric.upper()} of {of}\n{digest}"
    layers = config["model"].get("layers") or ()
    return Run(folder, settings, config["seed"], steps, parameters, metric, test, counts.sum(1), units, layers)


def _recognised(file: Path, utterances: int) -> list[list[str]]:
    """Id, reference and hypothesis of each utterance."""
    rows = [line.split("\t") for line in file.read_text().split("\n")[1:-1]]
    if len(rows) != utterances:
        raise ValueError(f"{file.name} has {len(rows)} utterances, and {utterances} were scored")
    return rows


def title(runs: Sequence[Run], among: Sequence[Run]) -> str:
    """What the runs of one test were scored on, and the settings that they share and others do not."""
    own, settings = runs[0].settings, [run.settings for run in among]
    shared = [key for key in own if len({run.settings.get(key) for run in runs}) == 1 and _tells(key, own, settings)]
    apart = f" ({', '.join(f'{key}={own[key]}' for key in shared)})" if len(runs) < len(among) and shared else ""
    return runs[0].test.partition("\n")[0] + apart


def arms(runs: Sequence[Run]) -> list[Arm]:
    """The runs of each settings, in the order of the runs.

    Raises:
        UserError: two runs have the same settings and seed.
    """
    alike: dict[str, dict[int, Run]] = {}
    for run in runs:
        arm = alike.setdefault(json.dumps(run.settings), {})
        if run.seed in arm:
            raise UserError(f"{arm[run.seed].folder} and {run.folder} have the same settings and seed: leave one out")
        arm[run.seed] = run
    settings = [next(iter(arm.values())).settings for arm in alike.values()]
    labels = ["\n".join(f"{key}={own[key]}" for key in own if _tells(key, own, settings)) for own in settings]
    return [Arm(label or "all", arm) for label, arm in zip(labels, alike.values(), strict=True)]


def differences(arms: Sequence[Arm]) -> list[Difference]:
    """Of all arms but the first from the first; their intervals hold all at once (Bonferroni)."""
    base, *others = arms
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(others))
    return [difference(base.runs, other.runs, confidence) for other in others]


def difference(base: Mapping[int, Run], other: Mapping[int, Run], confidence: float = CONFIDENCE) -> Difference:
    """Of the other arm's rate from the base's, over the seeds of both.

    Two chances are in it: which utterances are tested (bootstrap over them, Bisani & Ney 2004, each one counted as
    independent) and, from the second seed on, how training falls out (Student's t over the seeds; together as Behrens
    and Fisher have it). Of a loss it knows the second alone.

    Args:
        base, other: runs by their seeds.
    """
    seeds = sorted(base.keys() & other.keys())
    more = np.array([other[seed].errors - base[seed].errors for seed in seeds])
    if not np.isfinite(more).all() or not seeds:
        return Difference(np.nan, np.nan, np.nan, len(seeds))
    units, rng = base[seeds[0]].units, np.random.default_rng(0)
    rates = more.sum(1) / max(1, units.sum())
    drawn = (rng.integers(len(units), size=(RESAMPLES // 10, len(units))) for _ in range(10))  # all at once are large
    chances = np.concatenate([more.mean(0)[i].sum(1) / np.maximum(1, units[i].sum(1)) for i in drawn])
    if len(seeds) > 1:
        evenly = stdtrit(len(seeds) - 1, (np.arange(RESAMPLES) + 0.5) / RESAMPLES)
        chances += rates.std(ddof=1) * len(seeds) ** -0.5 * rng.permutation(evenly)
    known = len(seeds) > 1 or len(units) > 1
    low, high = np.quantile(chances, [(1 - confidence) / 2, (1 + confidence) / 2]) if known else (np.nan, np.nan)
    return Difference(float(rates.mean()), float(low), float(high), len(seeds))


def verdict_of(low: float, high: float) -> str:
    return "better" if high < 0 else "worse" if low > 0 else "not shown"


def _tells(key: str, own: Mapping[str, str], settings: Sequence[Mapping[str, str]]) -> bool:
    """Whether a setting is worth telling: it differs among those who wear the same part, or is not the part's default
    where others wear another.
    """
    room = key.partition(".")[0]
    peers = [other for other in settings if key == room or room == "model" or other.get(room) == own.get(room)]
    if len({other.get(key) for other in peers}) > 1:
        return True
    part = PARTS.get(room, {}).get(own.get(room, ""))
    parameter = hyperparameters(part).get(key.removeprefix(f"{room}.")) if part else None
    return len(peers) < len(settings) and parameter is not None and own[key] != told(parameter.default)


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Parts and numbers of a config, each with the words that set it."""
    idle = set(LAYER) - {"norm"} if config["model"].get("layers") else set()  # the list has parts of its own
    for section in ("model", *ROOMS, "kinds", "loader", "trainer"):
        if section not in idle:
            yield section, config[section].get("name", "")
            yield from ((key, told(value)) for key, value in leaves(config[section], section))
    yield "init_from", told(config["init_from"])
    yield "famx_parts", " ".join(f"{part['file']}:{part['sha256'][:8]}" for part in config["famx_parts"])


def told(value: Any) -> str:
    """A value as it is written; of a long one, such as a list of layers, eight digits that tell it from others."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) < 60 else f"#{hashlib.sha256(text.encode()).hexdigest()[:8]}"
