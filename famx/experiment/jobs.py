"""A run of a sweep: its state on disk, and its training in a process of its own."""

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from enum import StrEnum
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any, NamedTuple

from famx import files
from famx.config.command import show_warnings
from famx.experiment.resolve import resolve
from famx.experiment.run import run
from famx.notation import UserError
from famx.registry import get, load, load_file
from famx.training.identity import (
    changed_files,
    code_digests,
    essential_config,
    first_difference,
    list_files,
    read_code,
    with_neutral_options,
)
from famx.training.run_dir import RunDir


class State(StrEnum):
    """The state of a run: the first three before a sweep, the others after it."""

    NEW = "new"
    INTERRUPTED = "interrupted"
    FINISHED = "finished before"
    DONE = "done"
    STOPPED = "stopped"
    REFUSED = "refused"
    FAILED = "failed"
    NOT_STARTED = "not started"


class Job(NamedTuple):
    """A run of a sweep.

    Args:
        config: its composed config.
        folder: its folder.
        user_parts: files of the user's parts.
    """

    config: dict[str, Any]
    folder: Path
    user_parts: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.name


class Reports:
    """Watches whether a run writes reports, from when its process starts.

    A run that is resumed has reports already, and first removes those that it will repeat.

    Args:
        folder: folder of the run.
    """

    def __init__(self, folder: Path):
        self.file = RunDir(folder).metrics_file
        self.smallest = self._size()

    def has_grown(self) -> bool:
        """Returns whether a report has been added."""
        size = self._size()
        self.smallest = min(self.smallest, size)
        return size > self.smallest

    def _size(self) -> int:
        return self.file.stat().st_size if self.file.is_file() else 0


class Outcome(NamedTuple):
    """How a run of a sweep ended.

    Args:
        state: its state.
        message: the sentence of an error; empty without one.
        score: its best score on dev, None if it has none.
        seconds: wall time of its process.
    """

    state: State
    message: str = ""
    score: float | None = None
    seconds: float = 0.0


def read_state(job: Job, mixed_code: bool = False) -> State:
    """Returns whether a run is new, interrupted or finished.

    Args:
        mixed_code: whether a run may have been trained with other code.

    Raises:
        UserError: the folder has a run of another config, or one that was trained with other code.
    """
    run_dir = RunDir(job.folder)
    if not run_dir.config_file.exists():
        return State.NEW
    # the same config
    stored = run_dir.load_config()
    difference = first_difference(essential_config(resolve(job.config)), essential_config(stored))
    if difference is not None:
        raise UserError(
            f"{job.folder} has a run of another config ({difference}): "
            "hydra.sweep.dir=FOLDER chooses another folder for this sweep"
        )
    if not any(run_dir.checkpoints.glob("step-*")):
        return State.NEW
    # the same code
    code = read_code(run_dir)
    changed = changed_files(code, code_digests()) if code else []
    if changed and not mixed_code:
        raise UserError(
            f"{job.folder} was trained with other code ({list_files(changed)}): "
            "sweep.mixed_code=true continues with both, hydra.sweep.dir=FOLDER starts anew"
        )
    # a damaged result is written again by resuming
    return State.INTERRUPTED if read_score(job.folder) is None else State.FINISHED


def read_score(folder: Path) -> float | None:
    """Returns the best score on dev of a finished run; None if it is missing."""
    try:
        score = json.loads(RunDir(folder).result_file.read_text())["score"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return float(score) if isinstance(score, int | float) else None


def clear_unsaved(folder: Path) -> None:
    """Removes what a run has written that was killed before its first checkpoint."""
    run_dir = RunDir(folder)
    if any(run_dir.checkpoints.glob("step-*")):
        return
    for file in (run_dir.config_file, run_dir.metrics_file, run_dir.spectrum_file):
        file.unlink(missing_ok=True)
    for file in folder.glob("events.out.tfevents.*"):
        file.unlink()
    shutil.rmtree(run_dir.checkpoints, ignore_errors=True)


def carry_out(job: Job, mixed_code: bool = False) -> Outcome:
    """Trains a run in this process, from its last checkpoint if it was interrupted.

    Raises:
        UserError: the run is refused.
    """
    state = read_state(job, mixed_code)
    if state is State.FINISHED:
        return Outcome(State.FINISHED, score=read_score(job.folder))
    config = job.config
    if state is State.INTERRUPTED:
        config = with_neutral_options(RunDir(job.folder).load_config(), config)
    else:
        clear_unsaved(job.folder)
    with files.report_os_errors(job.folder):
        results = run(config, job.folder, resume=state is State.INTERRUPTED)
    if "stopped_by" in results:
        return Outcome(State.STOPPED, signal.Signals(results["stopped_by"]).name)
    return Outcome(State.DONE, score=read_score(job.folder))


def work(job: Job, mixed_code: bool, log_file: Path | None, sender: connection.Connection) -> None:
    """Trains a run in a process that was started for it, and sends its `Outcome`.

    Args:
        log_file: file of its output; None for the terminal.
    """
    # signals of the terminal reach the sweep alone, which passes them on
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with _redirect_output(log_file), show_warnings(), files.quiet_writer_threads():
        try:
            with files.report_os_errors(job.folder):
                for file in job.user_parts:
                    load_file(file)
                load("famx")
                outcome = carry_out(job, mixed_code)
        except UserError as error:
            outcome = Outcome(State.REFUSED, str(error))
        except KeyboardInterrupt:
            outcome = Outcome(State.STOPPED, signal.SIGINT.name)
        except Exception as error:
            traceback.print_exc()
            outcome = Outcome(State.FAILED, f"{type(error).__name__}: {error}")
        sys.stdout.flush()
        sender.send(outcome)


def _end_with_parent() -> None:
    """Saves and ends this run if the process of the sweep ends, for example by SIGKILL."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _redirect_output(log_file: Path | None) -> Iterator[None]:
    """Appends the output of this process, also of its libraries, to a file."""
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        output = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
    yield


def selection_metric(config: dict[str, Any]) -> str:
    """Returns the name of the score on dev by which a run selects its best weights."""
    return get("task", config["task"]["name"]).selection_metric
