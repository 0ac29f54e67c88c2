"""What a person sees of a run while it trains: a bar on a terminal, a line a report elsewhere."""

import contextlib
import logging
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

log = logging.getLogger(__name__)


class TrainingProgress:
    """Tells of one run, whose score on dev is `metric`.

    Args:
        quiet: for processes that do not report.
    """

    def __init__(self, metric: str, quiet: bool = False):
        self.metric, self.console = metric, Console(quiet=quiet)
        live = self.console.is_terminal and not quiet
        columns = TextColumn("{task.description}"), BarColumn()
        self.bar = Progress(*columns, console=self.console, disable=not live, transient=True)
        self.task = self.bar.add_task("training", total=None)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        with self.bar:
            yield

    def tell(
        self,
        split: str,
        text: str,
        step: int,
        total: int | None,
        rate: float,
        seconds: float,
        best: float,
    ):
        """One report: the bar's text on a terminal, a line elsewhere and in the log.

        Args:
            rate: seconds of audio or tokens a second.
            seconds: spent so far.
            best: score so far, infinite before the first.
        """
        error = (
            f"  best {self.metric} {format_score(self.metric, best)}" if best < float("inf") else ""
        )
        unit = "audio s/s" if self.metric != "loss" else "tokens/s"
        left = f"  {(total - step) * seconds / max(1, step):.0f} s left" if total else ""
        line, pace = f"step {step}/{total or '?'}  {split} {text}", f"  {rate:.0f} {unit}{left}"
        self.bar.update(self.task, completed=step, total=total, description=f"{line}{error}{pace}")
        if split == "dev" or not self.console.is_terminal:
            self.console.print(f"{line}{pace}", highlight=False, soft_wrap=True)
        if not self.console.quiet:
            log.info(line)


def format_score(name: str, value: float) -> str:
    """A score as it is read: a loss as it is, a rate in per cent."""
    return f"{value:.3f}" if name == "loss" else f"{100 * value:.2f} %"
