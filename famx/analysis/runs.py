"""Reads scored runs, and groups them by test and by setting."""

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from famx.config.command import format_command
from famx.config.schema import flatten
from famx.config.sections import FinetuneConfig
from famx.data._normalisers import RULES_VERSION
from famx.notation import UserError
from famx.registry import LAYER_ROOMS, PARTS, ROOMS, hyperparameters
from famx.task._wer import edits
from famx.training.identity import changed_files, list_files, read_code
from famx.training.run_dir import RunDir

ERROR_UNITS = {"wer": "word", "cer": "char"}
MAX_VALUE_LENGTH = 60  # characters; longer values are shown as a digest


class UnscoredError(UserError):
    """A run that has no score of the compared metric on the compared split."""


class Run(NamedTuple):
    """One scored run.

    Args:
        folder: folder of the run.
        settings: all of its config but the seed, as words of the command line: key -> value.
        seed: its seed.
        steps: number of training steps.
        parameters: number of parameters.
        metric: wer, cer, loss, or another score of the task.
        test: split, metric and data of the score; runs of one test can be compared.
        errors: (utterances,) errors per utterance. A loss or another score is stored as a single
            unit with that many errors.
        units: (utterances,) words or characters of the reference.
        layers: the choices of each layer, if layers were listed or sampled.
        is_fraction: whether the rate is shown in percent; a loss is not.
        higher_is_better: whether a higher rate is better, as of BLEU.
        result: what it has cost, from result.json; empty for a run without that file.
        code: digest of each file of the code that it was trained with; empty if not stored.
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
    is_fraction: bool = True
    higher_is_better: bool = False
    result: Mapping[str, Any] = MappingProxyType({})
    code: Mapping[str, str] = MappingProxyType({})

    @property
    def rate(self) -> float:
        """Errors per unit over all utterances, or the loss."""
        return float(self.errors.sum() / max(1, self.units.sum()))


class Setting(NamedTuple):
    """The runs of one setting.

    Args:
        label: the settings that distinguish it from the compared settings, one per line.
        runs: its runs by seed.
    """

    label: str
    runs: dict[int, Run]

    @property
    def mean_rate(self) -> float:
        return float(np.mean([run.rate for run in self.runs.values()]))


def read_run(folder: Path, split: str, metric: str | None, trust_edits: bool = False) -> Run:
    """Reads a run and its score.

    Args:
        metric: name of the score; None for the word error rate, or else the first score of the
            task, or else the loss.
        trust_edits: whether a config that has changed since the training is used.

    Raises:
        UnscoredError: it has no score on that split, or none of that metric.
        UserError: it is not a run, or it is damaged.
    """
    run_dir = RunDir(folder)
    config = run_dir.load_config()
    if not trust_edits:
        run_dir.require_unedited("--trust-edits")
    if not run_dir.scores_file(split).is_file():
        command = format_command("evaluate", str(folder), "--split", split)
        raise UnscoredError(
            f"{folder} is not scored on {split}: score it with {command} once it is trained"
        )
    try:
        return _read_scored(run_dir, config, split, metric)
    except UnscoredError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder}, scored on {split}, is damaged: {type(error).__name__} {error}"
        ) from error


def require_same_code(runs: Sequence[Run]) -> None:
    """Checks that runs were trained with the same code; runs that stored none are not checked.

    Raises:
        UserError: two runs differ; the message names files.
    """
    known = [run for run in runs if run.code]
    for run in known[1:]:
        changed = changed_files(known[0].code, run.code)
        if changed:
            raise UserError(
                f"{known[0].folder} and {run.folder} were trained with different code "
                f"({list_files(changed)}): --mixed-code compares them anyway"
            )


def group_by_setting(runs: Sequence[Run]) -> list[Setting]:
    """Groups runs of the same setting, in the order of the runs.

    Raises:
        UserError: two runs have the same setting and seed.
    """
    # runs by setting and seed
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        runs_by_seed = groups.setdefault(json.dumps(run.settings), {})
        if run.seed in runs_by_seed:
            duplicate = runs_by_seed[run.seed].folder
            raise UserError(
                f"{duplicate} and {run.folder} have the same settings and seed={run.seed}: "
                "leave one of them out"
            )
        runs_by_seed[run.seed] = run

    # labels
    first_runs = [next(iter(runs_by_seed.values())) for runs_by_seed in groups.values()]
    all_settings = [run.settings for run in first_runs]
    groups_with_labels = []
    for settings, runs_by_seed in zip(all_settings, groups.values(), strict=True):
        keys = [key for key in settings if _distinguishes(key, settings, all_settings)]
        label = "\n".join(f"{key}={settings[key]}" for key in keys)
        groups_with_labels.append(Setting(label or "all", runs_by_seed))
    return groups_with_labels


def title(runs: Sequence[Run], all_runs: Sequence[Run]) -> str:
    """Returns a description of the test of some runs.

    If there are other tests, it includes the settings that only these runs share.
    """
    test = runs[0].test.partition("\n")[0]
    settings = runs[0].settings
    all_settings = [run.settings for run in all_runs]
    shared = []
    # settings that all runs of this test share
    for key in settings:
        values = {run.settings.get(key) for run in runs}
        if len(values) == 1 and _distinguishes(key, settings, all_settings):
            shared.append(f"{key}={settings[key]}")
    if len(runs) < len(all_runs) and shared:
        return f"{test} ({', '.join(shared)})"
    return test


def format_value(value: Any) -> str:
    """Returns a value as text; a long one, such as a list of layers, as eight digits of a hash."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) < MAX_VALUE_LENGTH else f"#{_digest(text)}"


def _read_scored(run_dir: RunDir, config: Mapping[str, Any], split: str, metric: str | None) -> Run:
    """Reads the files of a run that is scored on a split."""
    # the metric
    scores = json.loads(run_dir.scores_file(split).read_text(encoding="utf-8"))
    names = [name for name, value in scores.items() if isinstance(value, dict) and "rate" in value]
    if metric is None:
        metric = "wer" if "wer" in names else [*names, "loss"][0]
    if metric not in (*names, "loss"):
        raise UnscoredError(
            f"{run_dir} has no {metric} on {split}; its task gives {', '.join([*names, 'loss'])}"
        )

    # transcripts and amount of data
    transcripts = None
    if "utterances" in scores:
        transcripts = _read_transcripts(run_dir.hypotheses_file(split), scores["utterances"])
        amount = f"{scores['utterances']:,} utterances"
    else:
        amount = f"{scores['tokens']:,} tokens"

    errors, units = _count_errors(scores, metric, transcripts)
    score: dict[str, Any] = {"is_fraction": False} if metric == "loss" else scores[metric]

    # steps and parameters of the run
    last_report = json.loads(run_dir.metrics_file.read_text(encoding="utf-8").splitlines()[-1])
    with run_dir.param_groups_file.open(encoding="utf-8") as lines:
        rows = csv.DictReader(lines, delimiter="\t")
        parameters = sum(int(group["parameters"]) for group in rows)
    settings = _settings(config)
    metric_name = metric if metric == "loss" else metric.upper()
    # scores name no version of it where it is the first one
    rules = f"{scores.get('normaliser', '')} {scores.get('normaliser_version', RULES_VERSION)}"
    # settings and version of sacrebleu
    rules += score.get("signature", "")
    digest = _test_digest(settings, metric, transcripts, rules)
    return Run(
        folder=run_dir.path,
        settings=settings,
        seed=config["seed"],
        steps=int(last_report["step"]),
        parameters=parameters,
        metric=metric,
        test=f"{split}: {metric_name} of {amount}\n{digest}",
        errors=errors,
        units=units,
        layers=config["model"].get("layers") or (),
        is_fraction=score.get("is_fraction", True),
        higher_is_better=score.get("higher_is_better", False),
        result=_read_result(run_dir),
        code=read_code(run_dir),
    )


def _count_errors(
    scores: Mapping[str, Any], metric: str, transcripts: Sequence[Sequence[str]] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the errors and the units of each utterance."""
    if metric in ERROR_UNITS:
        if transcripts is None:
            raise ValueError(f"{metric} without utterances")
        references = [row[1] for row in transcripts]
        hypotheses = [row[2] for row in transcripts]
        counts, units = edits(references, hypotheses, ERROR_UNITS[metric])
        return counts.sum(1), units
    if metric == "error" and transcripts is not None:
        # one label per utterance
        errors = np.array([float(row[1] != row[2]) for row in transcripts])
        return errors, np.ones(len(transcripts))
    # without counts per utterance, only the score itself is known
    score = scores["loss"] if metric == "loss" else scores[metric]["rate"]
    return np.array([float(score)]), np.ones(1)


def _read_result(run_dir: RunDir) -> dict[str, Any]:
    if not run_dir.result_file.is_file():
        return {}
    result = json.loads(run_dir.result_file.read_text())
    return dict(result)


def _read_transcripts(file: Path, n_utterances: int) -> list[list[str]]:
    """Reads id, reference and hypothesis of each utterance."""
    rows = [line.split("\t") for line in file.read_text(encoding="utf-8").split("\n")[1:-1]]
    if len(rows) != n_utterances:
        raise ValueError(f"{file.name} has {len(rows)} utterances, and {n_utterances} were scored")
    return rows


def _test_digest(
    settings: Mapping[str, str],
    metric: str,
    transcripts: Sequence[Sequence[str]] | None,
    rules: str,
) -> str:
    """Returns a digest that is the same for runs that can be compared.

    Such runs share ids, references, and the rules by which texts are normalised and scored. For a
    loss they also share data and task, which decide the units that a loss is a mean over.
    """
    text_settings = []
    if metric == "loss":
        for key, value in settings.items():
            if key.partition(".")[0] in ("data", "task"):
                text_settings.append(value)
    # ids and references without hypotheses
    references = transcripts and [row[:2] for row in transcripts]
    return _digest(json.dumps([text_settings, references, rules]))


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns the parts and numbers of a config by the keys that set them, without the seed."""
    # parts and sections
    unused = set()
    if config["model"].get("layers"):
        # the layers list their parts; only the norm after the last layer is that of the config
        unused = set(LAYER_ROOMS) - {"norm"}
    settings = {}
    # a run of an earlier version may lack settings of fine-tuning
    config = {**config, "finetune": vars(FinetuneConfig(**config["finetune"]))}
    for section in ("model", *ROOMS, "param_groups", "finetune", "loader", "trainer"):
        if section not in unused:
            settings[section] = config[section].get("name", "")
            for key, value in flatten(config[section], section):
                settings[key] = format_value(value)
    # other options that change a result
    settings["init_from"] = format_value(config["init_from"])
    user_parts = [f"{part['file']}:{part['sha256'][:8]}" for part in config["famx_parts"]]
    settings["famx_parts"] = " ".join(user_parts)
    return settings


def _distinguishes(
    key: str, settings: Mapping[str, str], all_settings: Sequence[Mapping[str, str]]
) -> bool:
    """Returns whether a setting is part of a label.

    It is if it differs among the settings that use the same part, or if others use another part and
    it is not the default of this part.
    """
    # it differs among the settings that use the same part
    room = key.partition(".")[0]
    if key == room or room == "model":
        peers = list(all_settings)
    else:
        peers = [peer for peer in all_settings if peer.get(room) == settings.get(room)]
    if len({peer.get(key) for peer in peers}) > 1:
        return True
    if len(peers) == len(all_settings):
        return False
    # others use another part, and it is not the default of this part
    part = PARTS.get(room, {}).get(settings.get(room, ""))
    if part is None:
        return False
    parameter = hyperparameters(part).get(key.removeprefix(f"{room}."))
    return parameter is not None and settings[key] != format_value(parameter.default)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
