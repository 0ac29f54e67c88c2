"""What a run leaves behind to be read: metrics.jsonl, TensorBoard events, and the log."""

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from famx import files
from famx.monitoring.heatmap import heat_map
from famx.monitoring.metrics import HeatMap


class RunLog:
    """Writes one run's reports.

    Args:
        folder: of the run.
        step: what was written after it is cut away first (0 for a new run).
    """

    def __init__(self, folder: Path, step: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "metrics.jsonl"
        kept = (
            [line for line in self.file.read_text().splitlines() if _step(line) <= step]
            if self.file.exists()
            else []
        )
        files.write_atomic(self.file, "".join(f"{line}\n" for line in kept))
        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        self.handler = _Log(folder / "famx.log")
        self.handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger = logging.getLogger("famx")
        logger.setLevel(logging.INFO)
        logger.addHandler(self.handler)
        self.pictures: dict[str, HeatMap] = {}

    def write(
        self,
        step: int,
        epoch: int,
        seconds: float,
        split: str,
        metrics: Mapping[str, float | Tensor],
    ) -> None:
        """One report: numbers become curves and a line of JSON; vectors histograms; matrices heat maps at `draw`."""
        scalars = {tag: value for tag, value in metrics.items() if not isinstance(value, Tensor)}
        line = {
            "step": step,
            "epoch": epoch,
            "seconds": round(seconds, 3),
            "split": split,
        } | scalars
        with files.report_os_errors(self.file), self.file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        for tag, value in scalars.items():
            self.writer.add_scalar(tag, value, step)
        for tag, value in metrics.items():
            if isinstance(value, Tensor) and value.ndim == 1:
                self.writer.add_histogram(tag, value, step)
            elif isinstance(value, Tensor) and value.any():  # else there is nothing to be seen yet
                rows = tuple(str(i + 1) for i in range(len(value)))
                self.pictures[tag] = HeatMap(value, rows, f"columns 1 to {value.shape[1]}")

    def draw(self, step: int, pictures: Mapping[str, HeatMap]) -> None:
        """Pictures, and the last matrix of every tag, as heat maps; TensorBoard's slider is the axis of steps."""
        for tag, picture in (self.pictures | pictures).items():
            self.writer.add_image(tag, heat_map(picture), step, dataformats="HWC")
        self.pictures.clear()

    def table(
        self, step: int, tag: str, header: tuple[str, ...], rows: list[tuple[str, ...]]
    ) -> None:
        """A table in TensorBoard's text tab; none where it has no rows."""
        if not rows:
            return
        lines = [header, tuple("---" for _ in header), *rows]
        text = "\n".join(
            "| " + " | ".join(cell.replace("|", "¦") for cell in row) + " |" for row in lines
        )
        self.writer.add_text(tag, text, step)

    def compare(self, settings: Mapping[str, Any], results: Mapping[str, float], step: int) -> None:
        """A row of TensorBoard's hparams tab, whose numbers are the last ones of all curves and these results."""
        # the first summary lists the columns, and TensorBoard would take those of one run for those of all
        for summary in hparams(dict(settings), {})[1:]:
            self.writer.file_writer.add_summary(summary)
        for tag, value in results.items():
            self.writer.add_scalar(tag, value, step)

    def close(self) -> None:
        self.writer.close()
        logging.getLogger("famx").removeHandler(self.handler)
        self.handler.close()


class _Log(logging.FileHandler):
    """A log whose failures end the run, as those of the other files do, where logging would print them and go on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        logging.getLogger("famx").removeHandler(self)
        with contextlib.suppress(OSError):  # closing writes what was refused once more
            self.close()
        raise


def _step(line: str) -> int:
    """The step of a line of metrics.jsonl; what is no whole report counts as later than any."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return 2**63
