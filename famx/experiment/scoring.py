"""Scores the splits of a run, and writes what they were scored under."""

import dataclasses
from collections.abc import Iterable

from famx.data._fingerprint import digest_of
from famx.data._normalisers import NORMALISERS, RULES_VERSION, normaliser_version
from famx.data.base import Dataset, Speech
from famx.experiment.build import Experiment
from famx.experiment.user_parts import is_checked
from famx.training.device import describe_device
from famx.training.error_analysis import analyse
from famx.training.evaluate import Evaluation, evaluate
from famx.training.run_dir import RunDir


def score(
    experiment: Experiment, run_dir: RunDir, splits: Iterable[str], weights: str, suffix: str = ""
) -> dict[str, Evaluation]:
    """Evaluates splits; writes hypotheses, differences and scores (`scores.<split>.json`).

    Args:
        weights: the weights of the model, in words.
        suffix: appended to the split in the names of the files.
    """
    # each split is written as soon as it is scored
    evaluations = {}
    for split in splits:
        loader = experiment.loader(split)
        batches = loader.eval_batches()
        name = loader.dataset.normaliser
        learned = run_dir.load_config()["data"].get("normaliser", Speech.normaliser)
        # a model that has learned other texts is compared under the rules of the references
        normalise = NORMALISERS.get(name) if name != learned else None
        evaluation = evaluate(
            experiment.model, experiment.task, batches, experiment.device, weights, normalise
        )
        conditions: dict[str, object] = {
            "normaliser": name,
            "decoder": dict(experiment.config["decode"]),
            "data": digest_of(loader.dataset.fingerprint()),
            "device": describe_device(experiment.device),
        }
        # none is named for the first version of famx's own rules
        if (version := normaliser_version(name)) != RULES_VERSION:
            conditions["normaliser_version"] = version
        if not is_checked(experiment.config):
            conditions["check"] = "off"
        analysis = analyse(
            experiment.task,
            evaluation.ids,
            evaluation.references,
            evaluation.hypotheses,
            speakers_of(loader.dataset),
        )
        evaluation = dataclasses.replace(evaluation, analysis=analysis)
        run_dir.write_evaluation(evaluation, split + suffix, conditions)
        evaluations[split] = evaluation
    return evaluations


def speakers_of(dataset: Dataset) -> dict[str, str]:
    """Returns the speaker of each example of speech, by its id; of other data, nothing."""
    if not isinstance(dataset, Speech):
        return {}
    return dict(zip(dataset.ids, dataset.speakers, strict=True))
