"""What a run leaves behind to be read: metrics.jsonl, TensorBoard events, and the log."""

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from famx import disk

# black through purple and orange to pale yellow, equally spaced
HEAT = ((0.0, 0.0, 0.02), (0.34, 0.06, 0.43), (0.73, 0.21, 0.33), (0.98, 0.55, 0.04), (0.99, 1.0, 0.64))


class Journal:
    """Writes one run's reports.

    Args:
        folder: of the run.
        step: what was written after it is cut away first (0 for a new run).
    """

    def __init__(self, folder: Path, step: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "metrics.jsonl"
        kept = (
            [line for line in self.file.read_text().splitlines() if _step(line) <= step] if self.file.exists() else []
        )
        disk.write(self.file, "".join(f"{line}\n" for line in kept))
        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        self.handler = _Log(folder / "famx.log")
        self.handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger = logging.getLogger("famx")
        logger.setLevel(logging.INFO)
        logger.addHandler(self.handler)
        self.pictures: dict[str, Tensor] = {}

    def write(self, step: int, epoch: int, seconds: float, split: str, metrics: Mapping[str, float | Tensor]) -> None:
        """One report: numbers become curves and a line of JSON; vectors histograms; matrices heat maps at `draw`."""
        scalars = {tag: value for tag, value in metrics.items() if not isinstance(value, Tensor)}
        line = {"step": step, "epoch": epoch, "seconds": round(seconds, 3), "split": split} | scalars
        with disk.told(self.file), self.file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        for tag, value in scalars.items():
            self.writer.add_scalar(tag, value, step)
        for tag, value in metrics.items():
            if isinstance(value, Tensor) and value.ndim == 1:
                self.writer.add_histogram(tag, value, step)
            elif isinstance(value, Tensor):
                self.pictures[tag] = value

    def draw(self, step: int, tensors: Mapping[str, Tensor], layers: Mapping[str, Tensor]) -> None:
        """The last matrix of every tag as a heat map; TensorBoard's slider is the axis of steps.

        Args:
            tensors: what the microscope has seen, a matrix a metric: a row a tensor, a column a report.
            layers: what the layers did with one utterance, a matrix a metric: a row or some a layer, a column a frame.
        """
        for tag, value in self.pictures.items():
            self.writer.add_image(tag, heat_map(value), step)
        for metric, value in tensors.items():
            self.writer.add_image(f"microscope/{metric}", heat_map(value, cell=8), step)
        for tag, value in layers.items():
            self.writer.add_image(tag, heat_map(value, cell=6, least=0.0), step)
        self.pictures.clear()

    def table(self, step: int, tag: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
        """A table in TensorBoard's text tab."""
        lines = [header, tuple("---" for _ in header), *rows]
        text = "\n".join("| " + " | ".join(cell.replace("|", "¦") for cell in row) + " |" for row in lines)
        self.writer.add_text(tag, text, step)

    def compare(self, settings: Mapping[str, Any], results: Mapping[str, float], step: int) -> None:
        """A row of TensorBoard's hparams tab."""
        for summary in hparams(dict(settings), dict(results)):
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


def heat_map(
    values: Float[Tensor, "rows columns"], cell: int = 12, least: float = float("inf")
) -> Float[Tensor, "rgb height width"]:
    """A picture of a matrix, dark for its smallest value and pale for its largest, `cell` pixels a value.

    What is not finite is as dark as the smallest.

    Args:
        least: the darkest, where no value is smaller: at 0 what is the same everywhere is pale, but dark where it is 0.
    """
    finite = values[values.isfinite()]
    low, high = (finite.min(), finite.max()) if len(finite) else (values.new_zeros(()), values.new_ones(()))
    low = low.clamp(max=least)
    place = (torch.where(values.isfinite(), values, low) - low) / (high - low).clamp(min=1e-12) * (len(HEAT) - 1)
    below = place.floor().clamp(max=len(HEAT) - 2)
    colours = torch.tensor(HEAT)
    rgb = torch.lerp(colours[below.long()], colours[below.long() + 1], (place - below)[..., None])
    return rgb.movedim(-1, 0).repeat_interleave(cell, 1).repeat_interleave(cell, 2)


def _step(line: str) -> int:
    """The step of a line of metrics.jsonl; what is no whole report counts as later than any."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return 2**63
