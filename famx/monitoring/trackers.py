"""Trackers of experiments to which a run's settings and curves are copied: `logger=mlflow`.

TensorBoard has everything; a tracker gets the settings of the run, all curves and the final scores.
Where they go is set by the tracker's own environment variables; docs/trackers.md names them.
"""

import logging
import os
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from famx import files
from famx.notation import UserError, suggest
from famx.training.run_dir import RunDir

log = logging.getLogger(__name__)

DEFAULT = "tensorboard"
PROJECT = "famx"  # the project or experiment, unless the tracker's variable names one
MAX_BATCH = 100  # settings or values that MLflow takes at once


class Tracker(ABC):
    """A run of a tracker. If the tracker fails during training, the training continues without it.

    Args:
        run_id: id of the run to continue, None for a new one.
        name: name of the run.
        settings: hyperparameters.

    Attributes:
        id: of the run, with which it can be continued.
    """

    id: str

    @abstractmethod
    def __init__(self, run_id: str | None, name: str, settings: Mapping[str, Any]):
        pass

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to each curve."""

    @abstractmethod
    def finish(self, has_failed: bool) -> None:
        """Ends the run."""


class Mlflow(Tracker):
    """A run of MLflow, of the experiment MLFLOW_EXPERIMENT_NAME, at MLFLOW_TRACKING_URI."""

    def __init__(self, run_id: str | None, name: str, settings: Mapping[str, Any]):
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.client = MlflowClient()
        if run_id is not None:
            self.id = run_id
            self.client.update_run(run_id, status="RUNNING")
            return
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(project)
        experiment_id = (
            experiment.experiment_id if experiment else self.client.create_experiment(project)
        )
        self.id = self.client.create_run(experiment_id, run_name=name).info.run_id
        params = [Param(key, str(value)) for key, value in settings.items()]
        for first in range(0, len(params), MAX_BATCH):
            self.client.log_batch(self.id, params=params[first : first + MAX_BATCH])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 10**6
        # other characters are refused
        names = {tag: re.sub(r"[^\w./: -]", "_", tag) for tag in values}
        metrics = [Metric(names[tag], value, now, step) for tag, value in values.items()]
        for first in range(0, len(metrics), MAX_BATCH):
            self.client.log_batch(self.id, metrics=metrics[first : first + MAX_BATCH])

    def finish(self, has_failed: bool) -> None:
        self.client.set_terminated(self.id, "FAILED" if has_failed else "FINISHED")


class Wandb(Tracker):
    """A run of Weights & Biases, of the project WANDB_PROJECT; WANDB_MODE=offline keeps it here."""

    def __init__(self, run_id: str | None, name: str, settings: Mapping[str, Any]):
        import wandb

        self.id = run_id or uuid.uuid4().hex
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            id=self.id,
            resume="allow",
            config=dict(settings),
            # other runs of this process are not ended, and its output is not captured
            reinit="create_new",
            settings=wandb.Settings(console="off"),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def finish(self, has_failed: bool) -> None:
        self.run.finish(exit_code=int(has_failed))


class Trackio(Tracker):
    """A run of Trackio, of the project TRACKIO_PROJECT, in the folder TRACKIO_DIR."""

    def __init__(self, run_id: str | None, name: str, settings: Mapping[str, Any]):
        import trackio

        # a run is continued by its name
        self.id = run_id or uuid.uuid4().hex[:8]
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self.run = trackio.init(
            project, f"{name} {self.id}", config=dict(settings), resume="allow", embed=False
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def finish(self, has_failed: bool) -> None:
        self.run.finish()


TRACKERS: dict[str, type[Tracker]] = {"mlflow": Mlflow, "wandb": Wandb, "trackio": Trackio}
"""Value of `logger`, which is the name of its package too -> its class."""


def check_logger(logger: object) -> None:
    """Checks that a tracker exists and is installed, without importing it.

    Raises:
        UserError: it does not, or is not.
    """
    if logger == DEFAULT:
        return
    if not isinstance(logger, str) or logger not in TRACKERS:
        choices = (DEFAULT, *TRACKERS)
        raise UserError(f"logger={logger}: no such tracker{suggest(str(logger), choices)}")
    spec = find_spec(logger)
    # a folder of this name, such as wandb's own output, is found too, but has no file
    if spec is None or spec.origin is None:
        raise UserError(f"logger={logger} needs its package: pip install 'famx[{logger}]'")


class Mirror:
    """Copies curves to a tracker, until the tracker fails.

    Args:
        logger: `tensorboard` for no tracker, or one of `TRACKERS`.
        run_dir: folder of the run, which holds the id of the tracker's run.
        name: name of the run.
        settings: hyperparameters.
        is_new: whether the run begins; otherwise the tracker's run is continued.

    Raises:
        UserError: the tracker cannot begin, such as without a key.
    """

    def __init__(
        self,
        logger: str,
        run_dir: RunDir,
        name: str,
        settings: Mapping[str, Any],
        is_new: bool = True,
    ):
        self.logger = logger
        self.tracker: Tracker | None = None
        if logger == DEFAULT:
            return
        run_id = None if is_new else _saved_id(run_dir, logger)
        try:
            self.tracker = TRACKERS[logger](run_id, name, settings)
        except Exception as error:
            raise UserError(
                f"logger={logger} cannot begin ({_first_line(error)}); logger={DEFAULT} trains "
                "without it"
            ) from error
        files.write_atomic(run_dir.tracker_file, f"{logger} {self.tracker.id}\n")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to each curve."""
        if self.tracker is None:
            return
        try:
            self.tracker.log(step, {tag: float(value) for tag, value in values.items()})
        except Exception as error:
            self._give_up(error)

    def finish(self, has_failed: bool) -> None:
        """Ends the tracker's run."""
        if self.tracker is None:
            return
        try:
            self.tracker.finish(has_failed)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        # whatever a network or a server does, the run goes on
        self.tracker = None
        log.warning(
            "logger=%s has failed (%s); TensorBoard has all of the run, and the tracker nothing "
            "from here on",
            self.logger,
            _first_line(error),
        )


def _saved_id(run_dir: RunDir, logger: str) -> str | None:
    """Returns the id of the tracker's run, None if the run had no tracker or another one."""
    try:
        name, run_id = run_dir.tracker_file.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    return run_id if name == logger and re.fullmatch(r"[0-9a-zA-Z-]{1,64}", run_id) else None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
