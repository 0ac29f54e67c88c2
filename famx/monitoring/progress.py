"""The progress of a run on the terminal: a bar, or a line a report where there is none."""

import logging

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from famx.notation import Modality

log = logging.getLogger(__name__)


class TrainingProgress:
    """Reports the progress of one run on the terminal and in the log.

    Args:
        metric: the score on dev.
        modality: what is trained on; rates are in seconds of audio or in tokens a second.
        quiet: prints nothing, for processes that do not report.
    """

    def __init__(self, metric: str, modality: Modality, quiet: bool = False):
        self.metric = metric
        self.rate_unit = "audio s/s" if modality is Modality.SPEECH else "tokens/s"
        self.console = Console(quiet=quiet)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task("training", total=None)

    def start(self) -> None:
        """Shows the bar, on a terminal."""
        self.bar.start()

    def stop(self) -> None:
        """Removes the bar."""
        self.bar.stop()

    def report(
        self,
        split: str,
        text: str,
        *,
        step: int,
        total_steps: int | None,
        rate: float,
        seconds: float,
        best_score: float,
    ) -> None:
        """Shows one report: as the bar's text on a terminal, as a line elsewhere and in the log.

        Args:
            text: the losses and scores, as they are to be read.
            total_steps: None while it is not known.
            rate: seconds of audio or tokens a second.
            seconds: elapsed so far.
            best_score: infinite before the first evaluation.
        """
        # what is logged, and what a terminal shows in addition
        line = f"step {step}/{total_steps or '?'}  {split} {text}"
        pace = f"  {rate:.0f} {self.rate_unit}"
        if total_steps:
            remaining = (total_steps - step) * seconds / max(1, step)
            pace += f"  {remaining:.0f} s left"
        best = ""
        if best_score < float("inf"):
            best = f"  best {self.metric} {format_score(self.metric, best_score)}"

        description = f"{line}{best}{pace}"
        self.bar.update(self.task, completed=step, total=total_steps, description=description)
        # a terminal's bar shows reports of training; those of dev stay above it
        if split == "dev" or not self.console.is_terminal:
            self.console.print(f"{line}{pace}", highlight=False, soft_wrap=True)
        if not self.console.quiet:
            log.info(line)


def format_score(name: str, value: float) -> str:
    """Returns a loss as a number, an error rate in per cent."""
    return f"{value:.3f}" if name == "loss" else f"{100 * value:.2f} %"
