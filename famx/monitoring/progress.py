"""The progress of a run: a bar on a terminal, or one line per report elsewhere."""

import logging
import math

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

log = logging.getLogger(__name__)


class TrainingProgress:
    """Reports the progress of one run on the terminal and in the log.

    Args:
        metric: name of the score on dev.
        unit: what rates count: "audio" (seconds of it), "tokens", "rows" or "examples".
        quiet: whether to print nothing, for processes that do not report.
    """

    def __init__(self, metric: str, unit: str, quiet: bool = False):
        self.metric = metric
        self.rate_unit = "audio s/s" if unit == "audio" else f"{unit}/s"
        self.console = Console(quiet=quiet, markup=False)
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
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
            text: the formatted losses and scores.
            total_steps: total number of steps, None while it is not known.
            rate: amount of data per second.
            seconds: elapsed time.
            best_score: best score on dev, infinite before the first evaluation.
        """
        # the text that is logged, and the pace and best score for the terminal
        line = f"step {step}/{total_steps or '?'}  {split} {text}"
        pace = f"  {rate:.0f} {self.rate_unit}"
        if total_steps:
            remaining = (total_steps - step) * seconds / max(1, step)
            pace += f"  {remaining:.0f} s left"
        best = ""
        if math.isfinite(best_score):
            best = f"  best {self.metric} {format_score(self.metric, best_score)}"

        description = f"{line}{best}{pace}"
        self.bar.update(self.task, completed=step, total=total_steps, description=description)
        # on a terminal the bar shows the reports of training, and those of dev stay above it
        if split == "dev" or not self.console.is_terminal:
            self.console.print(f"{line}{pace}", highlight=False, soft_wrap=True)
        if not self.console.quiet:
            log.info(line)


def format_score(name: str, value: float) -> str:
    """Returns a loss as a number, an error rate in percent."""
    return f"{value:.3f}" if name == "loss" else f"{100 * value:.2f} %"
