"""What a run leaves behind to be read: metrics.jsonl, TensorBoard events, and the log."""

import contextlib
import json
import logging
from collections.abc import Mapping
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from famx import disk
from famx.observe import Picture

# black through purple and orange to pale yellow, equally spaced
HEAT = ((0.0, 0.0, 0.02), (0.34, 0.06, 0.43), (0.73, 0.21, 0.33), (0.98, 0.55, 0.04), (0.99, 1.0, 0.64))
GREY = 0.6
ROW = 12  # pixels, enough for a name
WIDTH = 240  # pixels of a matrix of few columns: with its names about what TensorBoard's cards are wide


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
        self.pictures: dict[str, Picture] = {}

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
            elif isinstance(value, Tensor) and value.any():  # else there is nothing to be seen yet
                rows = tuple(str(i + 1) for i in range(len(value)))
                self.pictures[tag] = Picture(value, rows, f"columns 1 to {value.shape[1]}")

    def draw(self, step: int, pictures: Mapping[str, Picture]) -> None:
        """Pictures, and the last matrix of every tag, as heat maps; TensorBoard's slider is the axis of steps."""
        for tag, picture in (self.pictures | pictures).items():
            self.writer.add_image(tag, heat_map(picture), step, dataformats="HWC")
        self.pictures.clear()

    def table(self, step: int, tag: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
        """A table in TensorBoard's text tab; none where it has no rows."""
        if not rows:
            return
        lines = [header, tuple("---" for _ in header), *rows]
        text = "\n".join("| " + " | ".join(cell.replace("|", "¦") for cell in row) + " |" for row in lines)
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


def heat_map(picture: Picture) -> UInt8[np.ndarray, "height width 3"]:
    """A matrix from dark to pale, the names of its rows beside it, what its columns and colours mean beneath.

    Colours go from the 2 % quantile to that of 98 %, for a few outliers would leave the rest dark; where these read
    the same, from the smallest value to the largest; where these do, from 0 or the value below it. Where nothing is
    negative and the quantiles of what is positive are more than 30 times apart, they are logarithmic, and 0 is as dark
    as the least. What is not finite is grey.
    """
    values, known = picture.values.float(), picture.values.isfinite()
    low, high = _limits(values[known])
    least, most = _limits(values[known & (values > 0)])
    if logarithmic := bool((values[known] >= 0).all()) and 0 < 30 * least < most:
        low, high = least, most
    ends = torch.tensor([low, high])
    at, (start, stop) = (values.log(), ends.log()) if logarithmic else (values, ends)
    place = torch.where(known, ((at - start) / (stop - start).clamp(min=1e-30)).clamp(0, 1), torch.nan)
    names, font = _names(picture.rows), ImageFont.load_default()
    width = max(2, WIDTH // place.shape[1]) * place.shape[1]
    whole = Image.new("RGB", (names.width + width, names.height + 3 * ROW), "white")
    whole.paste(names, (0, 0))
    for part, top, height in ((place, 0, names.height), (torch.linspace(0, 1, WIDTH)[None], names.height + ROW, ROW)):
        body = Image.fromarray(_paint(part)).resize((width, height), Image.Resampling.NEAREST)
        whole.paste(body, (names.width, top))
    told = picture.columns + ("" if known.all() else "; grey: not defined")
    texts = ((0.0, 0, told), (0.0, 2, f"{low:.3g}"), (0.5, 2, "logarithmic" if logarithmic else ""))
    for place, line, text in (*texts, (1.0, 2, f"{high:.3g}")):
        left = names.width + place * (width - font.getlength(text))
        ImageDraw.Draw(whole).text((left, names.height + line * ROW), text, fill="black", font=font)
    return np.array(whole)


def _limits(values: Float[Tensor, " n"]) -> tuple[float, float]:
    """What is darkest and what is palest."""
    if not len(values):
        return 0.0, 0.0
    for ends in ([0.02, 0.98], [0.0, 1.0]):
        low, high = values.quantile(torch.tensor(ends), interpolation="nearest").tolist()
        if f"{low:.3g}" != f"{high:.3g}":  # as it is written beneath
            return low, high
    return min(low, 0.0), high


def _paint(place: Float[Tensor, "rows columns"]) -> UInt8[np.ndarray, "rows columns 3"]:
    """Colours of places from 0 to 1; grey for NaN."""
    place = place * (len(HEAT) - 1)
    below = place.nan_to_num().floor().clamp(max=len(HEAT) - 2)
    colours = torch.tensor(HEAT)
    rgb = torch.lerp(colours[below.long()], colours[below.long() + 1], (place - below)[..., None])
    return (255 * rgb.nan_to_num(GREY)).round().byte().numpy()


@lru_cache(maxsize=16)
def _names(rows: tuple[str, ...]) -> Image.Image:
    """The names of a matrix's rows, the same for all pictures of a run's tensors."""
    font = ImageFont.load_default()
    image = Image.new("RGB", (ceil(max(font.getlength(row) for row in rows)) + 6, ROW * len(rows)), "white")
    for i, row in enumerate(rows):
        ImageDraw.Draw(image).text((2, i * ROW), row, fill="black", font=font)
    return image


def _step(line: str) -> int:
    """The step of a line of metrics.jsonl; what is no whole report counts as later than any."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return 2**63
