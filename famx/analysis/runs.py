"""Whether an idea helped: runs of the same test side by side, and how far chance alone would take them apart."""

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from famx.config.command import format_command
from famx.config.schema import flatten
from famx.notation import UserError
from famx.registry import LAYER_ROOMS, PARTS, ROOMS, hyperparameters
from famx.task._wer import edits
from famx.training.run_dir import load_config

ERROR_UNITS = {"wer": "word", "cer": "char"}


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


class Setting(NamedTuple):
    """The runs of the same settings by their seeds, and the settings that tell them from the other arms."""

    label: str
    runs: dict[int, Run]


def read_run(folder: Path, split: str, metric: str | None) -> Run:
    """What a run is and what it scored.

    Args:
        metric: wer, cer or loss; None: the word error rate, or the loss where there are no words.

    Raises:
        UnscoredError: not on that split, or not by that metric.
        UserError: it is no run, or damaged.
    """
    config, file = load_config(folder), folder / f"scores.{split}.json"
    if not file.is_file():
        again = format_command("evaluate", str(folder), "--split", split)
        raise UnscoredError(
            f"{folder} is not scored on {split}; once it is trained, {again} does that"
        )
    try:
        scores, text = json.loads(file.read_text()), None
        counts, units = np.array([[float(scores["loss"])]]), np.ones(1)
        metric = metric or ("wer" if "wer" in scores else "loss")
        if metric not in scores:
            raise UnscoredError(
                f"{folder} has a loss on {split} and no {metric}, for nothing is recognised there"
            )
        of = (
            f"{scores['utterances']:,} utterances"
            if "utterances" in scores
            else f"{scores['tokens']:,} tokens"
        )
        if "utterances" in scores:
            text = _recognised(folder / f"hypotheses.{split}.tsv", scores["utterances"])
        if metric in ERROR_UNITS:
            counts, units = edits(
                [row[1] for row in text], [row[2] for row in text], ERROR_UNITS[metric]
            )
        steps = int(json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"])
        with (folder / "groups.tsv").open() as lines:
            parameters = sum(
                int(group["parameters"]) for group in csv.DictReader(lines, delimiter="\t")
            )
        settings = dict(_settings(config))
    except UnscoredError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder}, scored on {split}, is damaged: {type(error).__name__} {error}"
        ) from error
    # a loss is of the units that the text is cut into
    alike = [
        value
        for key, value in settings.items()
        if key.partition(".")[0] in ("data", "task") and metric == "loss"
    ]
    digest = hashlib.sha256(
        json.dumps([alike, text and [row[:2] for row in text]]).encode()
    ).hexdigest()[:8]
    test = f"{split}: {metric if metric == 'loss' else metric.upper()} of {of}\n{digest}"
    layers = config["model"].get("layers") or ()
    return Run(
        folder,
        settings,
        config["seed"],
        steps,
        parameters,
        metric,
        test,
        counts.sum(1),
        units,
        layers,
    )


def _recognised(file: Path, utterances: int) -> list[list[str]]:
    """Id, reference and hypothesis of each utterance."""
    rows = [line.split("\t") for line in file.read_text().split("\n")[1:-1]]
    if len(rows) != utterances:
        raise ValueError(f"{file.name} has {len(rows)} utterances, and {utterances} were scored")
    return rows


def title(runs: Sequence[Run], among: Sequence[Run]) -> str:
    """What the runs of one test were scored on, and the settings that they share and others do not."""
    own, settings = runs[0].settings, [run.settings for run in among]
    shared = [
        key
        for key in own
        if len({run.settings.get(key) for run in runs}) == 1 and _tells(key, own, settings)
    ]
    apart = (
        f" ({', '.join(f'{key}={own[key]}' for key in shared)})"
        if len(runs) < len(among) and shared
        else ""
    )
    return runs[0].test.partition("\n")[0] + apart


def group_by_setting(runs: Sequence[Run]) -> list[Setting]:
    """The runs of each settings, in the order of the runs.

    Raises:
        UserError: two runs have the same settings and seed.
    """
    alike: dict[str, dict[int, Run]] = {}
    for run in runs:
        arm = alike.setdefault(json.dumps(run.settings), {})
        if run.seed in arm:
            raise UserError(
                f"{arm[run.seed].folder} and {run.folder} have the same settings and seed: leave one out"
            )
        arm[run.seed] = run
    settings = [next(iter(arm.values())).settings for arm in alike.values()]
    labels = [
        "\n".join(f"{key}={own[key]}" for key in own if _tells(key, own, settings))
        for own in settings
    ]
    return [Setting(label or "all", arm) for label, arm in zip(labels, alike.values(), strict=True)]


def _tells(key: str, own: Mapping[str, str], settings: Sequence[Mapping[str, str]]) -> bool:
    """Whether a setting is worth telling: it differs among those who wear the same part, or is not the part's default
    where others wear another.
    """
    room = key.partition(".")[0]
    peers = [
        other
        for other in settings
        if key == room or room == "model" or other.get(room) == own.get(room)
    ]
    if len({other.get(key) for other in peers}) > 1:
        return True
    part = PARTS.get(room, {}).get(own.get(room, ""))
    parameter = hyperparameters(part).get(key.removeprefix(f"{room}.")) if part else None
    return (
        len(peers) < len(settings)
        and parameter is not None
        and own[key] != format_value(parameter.default)
    )


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Parts and numbers of a config, each with the words that set it."""
    idle = (
        set(LAYER_ROOMS) - {"norm"} if config["model"].get("layers") else set()
    )  # the list has parts of its own
    for section in ("model", *ROOMS, "kinds", "loader", "trainer"):
        if section not in idle:
            yield section, config[section].get("name", "")
            yield from (
                (key, format_value(value)) for key, value in flatten(config[section], section)
            )
    yield "init_from", format_value(config["init_from"])
    yield (
        "famx_parts",
        " ".join(f"{part['file']}:{part['sha256'][:8]}" for part in config["famx_parts"]),
    )


def format_value(value: Any) -> str:
    """A value as it is written; of a long one, such as a list of layers, eight digits that tell it from others."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) < 60 else f"#{hashlib.sha256(text.encode()).hexdigest()[:8]}"
