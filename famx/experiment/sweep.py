"""Sweeps: each run in a process of its own, several at once if asked for, and a table at the end.

A sweep that is repeated skips its finished runs and resumes the interrupted ones.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from filelock import FileLock, Timeout
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from famx.config.sections import SweepConfig
from famx.experiment.checks import check_config
from famx.experiment.jobs import (
    Job,
    Outcome,
    Reports,
    State,
    read_score,
    read_state,
    selection_metric,
    work,
)
from famx.experiment.packing import Slots
from famx.monitoring.progress import format_score
from famx.notation import UserError
from famx.training.device import handle_signals

STARTABLE = (State.NEW, State.INTERRUPTED)
OUTPUT = "output.log"


@dataclass
class Running:
    """A run whose process has been started."""

    job: Job
    process: BaseProcess
    receiver: connection.Connection
    start: float
    reports: Reports


class Sweep:
    """Trains the runs of a sweep.

    Args:
        folder: folder of the sweep.
        jobs: its runs.
        total: their number.
        settings: options of the sweep.
        console: receives a line for each run, and the table.
    """

    def __init__(
        self,
        folder: Path,
        jobs: Iterable[Job],
        total: int,
        settings: SweepConfig,
        console: Console,
    ):
        self.folder = folder
        self.source = iter(jobs)
        self.waiting = self._startable()
        self.total = total
        self.settings = settings
        self.console = console
        self.jobs: list[Job] = []
        self.retried: list[Job] = []
        self.running: list[Running] = []
        self.outcomes: dict[str, Outcome] = {}
        self.attempts: dict[str, int] = {}
        self.stopped_by: int | None = None
        self.slots: Slots | None = None

    def print_plan(self) -> int:
        """Prints the state of each run, and trains none; returns 2 if one is refused, else 0."""
        for job in self.source:
            self.jobs.append(job)
            self.outcomes[job.name] = self._examine(job)
        self._print_table("what would run")
        states = {outcome.state for outcome in self.outcomes.values()}
        return 2 if State.REFUSED in states else 0

    def carry_out(self) -> int:
        """Trains all runs that are not finished; returns the exit status of the command.

        The status is 0 if all runs are finished, 2 if one is refused, 1 if one has failed, and 128
        plus the number of the signal that ended the sweep.

        Raises:
            UserError: another process carries out this sweep.
        """
        with self._lock(), handle_signals(self._stop):
            try:
                self._train()
            finally:
                self._kill()
        # those that a signal has left
        for job in self.waiting if self.stopped_by is not None else ():
            self.outcomes[job.name] = Outcome(State.NOT_STARTED)
        self._print_table("sweep")
        return self._status()

    def report(self, job: Job, outcome: Outcome) -> None:
        """Called with the outcome of each run; a subclass may use it for its next runs."""

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                yield
        except Timeout as error:
            raise UserError(
                f"{self.folder} is in use: another process carries out this sweep"
            ) from error

    def _examine(self, job: Job) -> Outcome:
        """Returns the state of a run before it is started."""
        try:
            state = read_state(job, self.settings.mixed_code)
            if state is State.NEW:
                check_config(job.config)
        except UserError as error:
            return Outcome(State.REFUSED, str(error))
        return Outcome(state, score=read_score(job.folder))

    def _train(self) -> None:
        """Starts the runs one after the other, as many at once as may be, and waits for all."""
        while True:
            while self.slots is None or len(self.running) < self.slots.limit:
                job = self._next_job()
                if job is None:
                    break
                self._start(job)
            if not self.running:
                return
            receivers = [running.receiver for running in self.running]
            ended = connection.wait(receivers, self.slots.interval if self.slots else None)
            for running in list(self.running):
                if running.receiver in ended:
                    self._end(running)
            self._measure()

    def _measure(self) -> None:
        """Measures the machine where the number of runs at once depends on it."""
        if self.slots is None or self.slots.interval is None or not self.running:
            return
        # a run that writes reports trains
        if self.running[0].reports.has_grown():
            message = self.slots.observe()
            if message:
                self.console.print(message, markup=False, soft_wrap=True)

    def _next_job(self) -> Job | None:
        """Returns the next run to start; None if there is none, or the sweep has been stopped."""
        if self.stopped_by is not None:
            return None
        if self.retried:
            return self.retried.pop(0)
        return next(self.waiting, None)

    def _startable(self) -> Iterator[Job]:
        """Yields the runs to start; all are examined first, so that mistakes are reported early."""
        startable = []
        for job in self.source:
            if self._may_start(job):
                startable.append(job)
        yield from startable

    def _may_start(self, job: Job) -> bool:
        """Returns whether a run has to be trained; otherwise it has ended here."""
        self.jobs.append(job)
        outcome = self._examine(job)
        if outcome.state in STARTABLE:
            return True
        self._finish(job, outcome)
        return False

    def _end(self, running: Running) -> None:
        """Stores the outcome of a process that has ended, or lets its run start again."""
        job = running.job
        outcome = self._collect(running)
        may_retry = self.attempts[job.name] <= self.settings.retries and self.stopped_by is None
        if outcome.state is State.FAILED and may_retry:
            message = f"{job.name} is started again: {outcome.message}"
            self.console.print(message, markup=False, soft_wrap=True)
            self.retried.append(job)
        else:
            self._finish(job, outcome)

    def _start(self, job: Job) -> None:
        """Starts the process of a run."""
        self.attempts[job.name] = self.attempts.get(job.name, 0) + 1
        if self.slots is None:
            self.slots = Slots(self.settings.jobs, job.config)
        log_file = None
        if self.settings.jobs != 1:
            job = job._replace(config=self.slots.share(job.config))
            log_file = job.folder / OUTPUT
        else:
            number = len(self.outcomes) + 1
            self.console.print(Text(f"run {number} of {self.total}: {job.name}", "bold"))
        context = _process_context()
        receiver, sender = context.Pipe(duplex=False)
        arguments = (job, self.settings.mixed_code, log_file, sender)
        reports = Reports(job.folder)
        process = context.Process(target=work, args=arguments)
        process.start()
        # only the run holds the other end, so that its death closes the pipe
        sender.close()
        self.running.append(Running(job, process, receiver, time.monotonic(), reports))
        # a signal may have come since the run was chosen
        if self.stopped_by is not None:
            self._stop(self.stopped_by)

    def _collect(self, running: Running) -> Outcome:
        """Returns how a process ended."""
        self.running.remove(running)
        try:
            outcome = running.receiver.recv()
        except EOFError:
            outcome = None
        running.process.join()
        if outcome is None:
            # a run that was stopped before its first step has nothing to save
            state = State.FAILED if self.stopped_by is None else State.STOPPED
            outcome = Outcome(state, _describe_exit(running.process.exitcode))
        return outcome._replace(seconds=time.monotonic() - running.start)

    def _finish(self, job: Job, outcome: Outcome) -> None:
        """Stores an outcome, and prints it where the run itself has not."""
        self.report(job, outcome)
        self.outcomes[job.name] = outcome
        number = len(self.outcomes)
        if outcome.message:
            message = f"famx: {job.name} is {outcome.state}: {outcome.message}"
            print(message, file=sys.stderr, flush=True)
        elif self.settings.jobs != 1 and outcome.state is State.DONE:
            score = _describe_score(job, outcome)
            message = f"{number} of {self.total}: {job.name}, {outcome.seconds:.0f} s, {score}"
            self.console.print(message, markup=False, soft_wrap=True)

    def _stop(self, number: int) -> None:
        """Lets the runs save and end; a second signal ends them at once."""
        self.stopped_by = number
        for running in self.running:
            if running.process.pid is not None:
                os.kill(running.process.pid, signal.SIGTERM)

    def _kill(self) -> None:
        """Ends processes that are still there, after an error or a second signal."""
        for running in self.running:
            running.process.kill()
            running.process.join()

    def _print_table(self, title: str) -> None:
        """Prints a row per run: state, score on dev, time, and the sentence of an error."""
        table = Table(title=title, title_justify="left", box=box.SIMPLE)
        for column in ("run", "state", "score on dev", "time", ""):
            table.add_column(column, overflow="fold")
        for job in self.jobs:
            outcome = self.outcomes[job.name]
            seconds = f"{outcome.seconds:.0f} s" if outcome.seconds else ""
            score = _describe_score(job, outcome)
            row = (job.name, outcome.state, score, seconds, outcome.message)
            table.add_row(*map(Text, row))
        self.console.print(table)

    def _status(self) -> int:
        if self.stopped_by is not None:
            return 128 + self.stopped_by
        states = {outcome.state for outcome in self.outcomes.values()}
        if State.REFUSED in states:
            return 2
        return 0 if states <= {State.DONE, State.FINISHED} else 1


def _process_context() -> multiprocessing.context.ForkServerContext:
    """Returns the context that starts processes, in which all of famx is imported already.

    A server process imports the modules once; each run is a fork of it. It has no threads and has
    not used CUDA.
    """
    context = multiprocessing.get_context("forkserver")
    modules = [name for name in sys.modules if name.startswith("famx.")]
    context.set_forkserver_preload(modules)
    return context


def _describe_exit(code: int | None) -> str:
    """Returns why a process ended that sent no outcome."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ", perhaps for lack of memory" if -code == signal.SIGKILL else ""
        return f"ended by {name}{hint}"
    return f"ended with status {code}"


def _describe_score(job: Job, outcome: Outcome) -> str:
    if outcome.score is None:
        return ""
    metric = selection_metric(job.config)
    return f"{metric} {format_score(metric, outcome.score)}"
