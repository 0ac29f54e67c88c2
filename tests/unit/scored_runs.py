"""Folders of scored runs, written without training them."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir

from famx.config.schema import CONF, register_schemas, to_plain
from famx.config.versions import VERSION_BASE
from famx.experiment.resolve import resolve
from famx.notation import Modality
from famx.task._wer import error_rate
from famx.training.evaluate import Evaluation
from famx.training.loader_config import LoaderConfig
from famx.training.run_dir import RunDir
from famx.training.trainer_config import TrainerConfig

register_schemas(trainer=TrainerConfig, loader=LoaderConfig)

REFERENCES = ["one two three", "four five", "six seven eight nine", "ten"]
WRONG_HYPOTHESES = ["one two four", "four", "six eight nine", "on"]  # 4 of 10 words


def write_scored_run(
    folder: Path,
    *words: str,
    hypotheses: Sequence[str] = REFERENCES,
    loss: float = 1.0,
    steps: int = 400,
) -> Path:
    """Writes the files of a run that was trained with these words and scored on test."""
    run_dir = RunDir(folder)
    folder.mkdir(parents=True)
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        config = resolve(to_plain(compose("train", list(words))))
    run_dir.config_file.write_text(yaml.safe_dump(config))
    groups = "kind\ttensors\tparameters\nconv\t2\t1000\nnorm\t1\t24\n"
    run_dir.param_groups_file.write_text(groups)
    reports = [json.dumps({"step": step}) for step in (50, steps)]
    run_dir.metrics_file.write_text("\n".join(reports) + "\n")

    # a language model has a loss alone
    evaluation = Evaluation(
        loss=loss,
        scores={},
        ids=[],
        references=[],
        hypotheses=[],
        modality=Modality.TEXT,
        amount=1000.0,
        seconds=1.0,
        precision="fp32",
    )
    if config["task"]["name"] == "ctc":
        scores = {
            "wer": error_rate(REFERENCES, hypotheses, "word"),
            "cer": error_rate(REFERENCES, hypotheses, "char"),
        }
        evaluation = dataclasses.replace(
            evaluation,
            scores=scores,
            ids=[str(i) for i in range(len(REFERENCES))],
            references=REFERENCES,
            hypotheses=list(hypotheses),
            modality=Modality.SPEECH,
        )
    run_dir.write_evaluation(
        evaluation, "test", {"normaliser": "none", "decoder": {"name": "ctc_greedy"}}
    )
    return folder
