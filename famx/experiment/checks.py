"""Checks of a run before it trains: its config without the data, and its data."""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from famx.config.sections import FinetuneConfig
from famx.experiment.build import Experiment, build_optimizer, build_without_memory
from famx.experiment.resolve import check_parts_fit, is_on, probe_level, resolve
from famx.monitoring.trackers import check_logger
from famx.notation import SAMPLE_RATE, Modality, UserError
from famx.registry import build
from famx.training.loader_config import LoaderConfig
from famx.training.trainer_config import TrainerConfig

log = logging.getLogger(__name__)


def check_config(config: Mapping[str, Any]) -> None:
    """Checks all of a composed config that needs neither its data nor memory for its weights.

    Raises:
        UserError: a run of this config would be refused.
    """
    resolved = resolve(config)
    check_parts_fit(resolved)
    probe_level(resolved["probe"])
    is_on(resolved, "pictures")
    check_logger(resolved["logger"])
    TrainerConfig(**resolved["trainer"])
    FinetuneConfig(**resolved["finetune"])
    LoaderConfig(**resolved["loader"])
    build("schedule", resolved["schedule"], total_steps=1000)
    # any parameter shows whether an optimizer accepts its options
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    build_optimizer(resolved["optim"], [parameter], resolved["momentum"], resolved["spectrum"])
    try:
        build_without_memory(resolved, vocab_size=2)
    except UserError:
        raise
    except Exception:
        log.debug("the model cannot be built on the meta device", exc_info=True)


def check_learnable(experiment: Experiment, split: str) -> None:
    """Checks that the recordings of a split are long enough for their texts to be learned.

    If the data set skips bad recordings, a warning counts the short ones; their loss is 0.

    Raises:
        UserError: a recording is too short; the message names the first one.
    """
    dataset = experiment.loader(split).dataset
    if dataset.modality is not Modality.SPEECH:
        return
    # frames of all recordings from their lengths alone, without decoding any
    lengths = (torch.tensor(dataset.lengths) * SAMPLE_RATE).long()
    n_frames = experiment.model.frontend.n_frames(lengths).tolist()
    reasons = []
    for i, text in enumerate(dataset.texts):
        reason = experiment.task.reject(n_frames[i], text)
        if reason:
            reasons.append(f"{dataset.ids[i]} {reason}")
    if not reasons:
        return
    if not dataset.skip_bad:
        raise UserError(f"{reasons[0]}; data.skip_bad=true trains without such recordings")
    log.warning(
        "%d recordings are too short for their texts and have no effect; the first: %s",
        len(reasons),
        reasons[0],
    )
