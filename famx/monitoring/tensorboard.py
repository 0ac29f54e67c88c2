"""Writes the reports of a run: `metrics.jsonl`, TensorBoard events, and `famx.log`."""

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from famx import files
from famx.monitoring.heatmap import heat_map
from famx.monitoring.metrics import HeatMap
from famx.training.run_dir import RunDir


class RunLog:
    """Writes the reports of one run.

    Args:
        run_dir: folder of the run, created if it is absent.
        step: reports of later steps are removed (0 for a new run).
    """

    def __init__(self, run_dir: RunDir, step: int = 0):
        run_dir.path.mkdir(parents=True, exist_ok=True)
        self.file = run_dir.metrics_file
        # drops lines of later steps, which will be written again, and lines cut off by a crash
        lines = []
        if self.file.exists():
            lines = [line for line in self.file.read_text().splitlines() if _step(line) <= step]
        files.write_atomic(self.file, "".join(f"{line}\n" for line in lines))

        self.writer = SummaryWriter(str(run_dir.path), purge_step=step + 1 if step else None)
        self.matrices: dict[str, HeatMap] = {}  # the last matrix of each tag, not drawn yet

        # messages of all famx modules go to the log
        self.handler = _LogFile(run_dir.log_file)
        self.handler.setFormatter(files.PrintableFormatter("%(asctime)s %(message)s"))
        logger = logging.getLogger("famx")
        logger.setLevel(logging.INFO)
        logger.addHandler(self.handler)

    def write(
        self,
        step: int,
        epoch: int,
        seconds: float,
        split: str,
        metrics: Mapping[str, float | Tensor],
    ) -> None:
        """Writes one report.

        Numbers become curves and a line of `metrics.jsonl`, vectors become histograms, and
        matrices become heat maps at the next `log_images`.

        Args:
            seconds: time since the run began.
            metrics: numbers and tensors on the CPU, by TensorBoard tag.
        """
        scalars = {tag: value for tag, value in metrics.items() if not isinstance(value, Tensor)}
        tensors = {tag: value for tag, value in metrics.items() if isinstance(value, Tensor)}

        # numbers
        context = {"step": step, "epoch": epoch, "seconds": round(seconds, 3), "split": split}
        with files.report_os_errors(self.file), self._open_reports() as stream:
            stream.write(json.dumps(context | scalars) + "\n")

        for tag, value in scalars.items():
            self.writer.add_scalar(tag, value, step)
        # vectors and matrices
        for tag, tensor in tensors.items():
            if tensor.ndim == 1:
                self.writer.add_histogram(tag, tensor, step)
            elif tensor.any():  # a matrix of zeros is not filled yet
                rows = tuple(str(i + 1) for i in range(len(tensor)))
                self.matrices[tag] = HeatMap(tensor, rows, f"columns 1 to {tensor.shape[1]}")

    def _open_reports(self) -> TextIO:
        return open(self.file, "a", encoding="utf-8", opener=files.open_own)

    def log_images(self, step: int, images: Mapping[str, HeatMap]) -> None:
        """Draws images and the last matrix of every tag as heat maps.

        The slider of TensorBoard's image tab is the axis of steps.
        """
        for tag, image in {**self.matrices, **images}.items():
            self.writer.add_image(tag, heat_map(image), step, dataformats="HWC")
        self.matrices.clear()

    def log_text_table(
        self, step: int, tag: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]
    ) -> None:
        """Writes a table to TensorBoard's text tab, unless it has no rows."""
        if not rows:
            return
        # Markdown, in which a vertical bar would end the cell
        rule = tuple("---" for _ in header)
        lines = []
        for row in (header, rule, *rows):
            cells = [cell.replace("|", "¦") for cell in row]
            lines.append(f"| {' | '.join(cells)} |")
        self.writer.add_text(tag, "\n".join(lines), step)

    def log_hparams(
        self, settings: Mapping[str, Any], results: Mapping[str, float], step: int
    ) -> None:
        """Writes the run's row of TensorBoard's hparams tab.

        Its numbers are the last values of all curves, and `results`.
        """
        # omits the first summary, which lists the columns: TensorBoard uses one list for all runs
        _, *session = hparams(dict(settings), {})
        for summary in session:
            self.writer._get_file_writer().add_summary(summary)
        for tag, value in results.items():
            self.writer.add_scalar(tag, value, step)

    def close(self) -> None:
        """Writes what is buffered and closes the files."""
        self.writer.close()
        logging.getLogger("famx").removeHandler(self.handler)
        self.handler.close()


class _LogFile(logging.FileHandler):
    """A log file whose failure ends the run, while plain logging prints it and continues."""

    def _open(self) -> Any:
        return open(self.baseFilename, "a", encoding="utf-8", opener=files.open_own)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        logging.getLogger("famx").removeHandler(self)
        with contextlib.suppress(OSError):  # closing tries to write the same record again
            self.close()
        raise


def _step(line: str) -> int:
    """Returns the step of a line of metrics.jsonl; a huge number if the line is incomplete."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return 2**63
