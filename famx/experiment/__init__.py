"""Experiments: from a composed config to a trained and evaluated run."""

from famx.experiment.build import build_optimizer
from famx.experiment.resolve import resolve
from famx.experiment.run import run
from famx.model import build_model

__all__ = ["build_model", "build_optimizer", "resolve", "run"]
