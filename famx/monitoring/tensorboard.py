"""Writes the reports of a run: `metrics.jsonl`, TensorBoard events, and `famx.log`."""

import contextlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from tensorboard.compat.proto.summary_pb2 import DataClass, Summary, SummaryMetadata
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from famx import files
from famx.monitoring.descriptions import describe, how_to_read
from famx.monitoring.figures import Pixels
from famx.monitoring.heatmap import heat_map
from famx.monitoring.metrics import HeatMap
from famx.monitoring.trackers import Mirror
from famx.notation import UserError
from famx.training.run_dir import RunDir


class RunLog:
    """Writes the reports of one run.

    Args:
        run_dir: folder of the run, created if it is absent.
        step: reports of later steps are removed (0 for a new run).
        mirror: copies the curves to a tracker.
    """

    def __init__(self, run_dir: RunDir, step: int = 0, mirror: Mirror | None = None):
        self.mirror = mirror
        self.has_failed = False
        run_dir.path.mkdir(parents=True, exist_ok=True)
        self.file = run_dir.metrics_file
        # drops lines of later steps, which will be written again, and lines cut off by a crash
        lines = []
        if self.file.exists():
            # a file that is not UTF-8 is damaged; its other lines remain
            text = self.file.read_text(encoding="utf-8", errors="replace")
            lines = [line for line in text.splitlines() if _step(line) <= step]
        files.write_atomic(self.file, "".join(f"{line}\n" for line in lines))

        self.writer = SummaryWriter(str(run_dir.path), purge_step=step + 1 if step else None)
        self.matrices: dict[str, HeatMap] = {}  # the last matrix of each tag, not drawn yet
        if step == 0:
            self.writer.add_text("how to read this", how_to_read(), step)

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

        self.log_curves(step, scalars)
        # vectors and matrices
        for tag, tensor in tensors.items():
            if tensor.ndim == 1:
                self.writer.add_histogram(tag, tensor, step)
            elif tensor.any():  # a matrix of zeros is not filled yet
                rows = tuple(str(i + 1) for i in range(len(tensor)))
                self.matrices[tag] = HeatMap(tensor, rows, f"columns 1 to {tensor.shape[1]}")

    def log_curves(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a point of each curve to TensorBoard, with the description of its tag."""
        for tag, value in values.items():
            plugin = SummaryMetadata.PluginData(plugin_name="scalars")
            # without a class of data, TensorBoard would replace the metadata
            metadata = SummaryMetadata(
                plugin_data=plugin,
                data_class=DataClass.DATA_CLASS_SCALAR,
                summary_description=describe(tag),
            )
            point = Summary.Value(tag=tag, simple_value=float(value), metadata=metadata)
            self.writer._get_file_writer().add_summary(Summary(value=[point]), step)
        if self.mirror:
            self.mirror.log(step, values)

    def log_charts(self, charts: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Adds charts with several curves to TensorBoard's custom scalars.

        Args:
            charts: section -> title of a chart -> tags of its curves.
        """
        layout: dict[str, dict[str, list[Any]]] = {}
        for section, tags_by_title in charts.items():
            layout[section] = {}
            for title, tags in tags_by_title.items():
                # tags are read as regular expressions
                patterns = [f"^{re.escape(tag)}$" for tag in tags]
                layout[section][title] = ["Multiline", patterns]
        self.writer.add_custom_scalars(layout)

    def _open_reports(self) -> TextIO:
        return open(self.file, "a", encoding="utf-8", opener=files.open_regular)

    def log_images(self, step: int, images: Mapping[str, HeatMap]) -> None:
        """Draws images and the last matrix of every tag as heat maps.

        The slider of TensorBoard's image tab is the axis of steps.
        """
        for tag, image in {**self.matrices, **images}.items():
            self.writer.add_image(tag, heat_map(image), step, dataformats="HWC")
        self.matrices.clear()

    def log_pictures(self, step: int, pictures: Mapping[str, Pixels]) -> None:
        """Writes pictures that are drawn already, by tag."""
        for tag, pixels in pictures.items():
            self.writer.add_image(tag, pixels, step, dataformats="HWC")

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

    def log_hparams(self, name: str, settings: Mapping[str, Any]) -> None:
        """Writes the run's row of TensorBoard's hparams tab; its numbers are those of all curves.

        Writes no list of columns, since TensorBoard would use that of one run for all runs.

        Args:
            name: name of the row, different for every run.
            settings: hyperparameters. A title breaks its line at spaces, and is cut elsewhere.
        """
        titled = {key.replace(".", " "): value for key, value in settings.items()}
        self.writer._get_file_writer().add_summary(hparams_pb(titled, trial_id=name))

    def log_error(self, error: BaseException) -> None:
        """Writes an error to famx.log, with its traceback unless it is a mistake of the user."""
        self.has_failed = True
        logger = logging.getLogger("famx")
        # a log that cannot be written has removed itself
        if self.handler not in logger.handlers:
            return
        text = f"ended by {type(error).__name__}: {error}"
        trace = None
        if not isinstance(error, UserError):
            trace = (type(error), error, error.__traceback__)
        record = logger.makeRecord(logger.name, logging.ERROR, "", 0, text, (), trace)
        # to the file alone: the command prints the error
        self.handler.handle(record)

    def close(self) -> None:
        """Writes what is buffered and closes the files."""
        if self.mirror:
            self.mirror.finish(self.has_failed)
        self.writer.close()
        logging.getLogger("famx").removeHandler(self.handler)
        self.handler.close()


class _LogFile(logging.FileHandler):
    """A log file whose failure ends the run, while plain logging prints it and continues."""

    def _open(self) -> Any:
        return open(self.baseFilename, "a", encoding="utf-8", opener=files.open_regular)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        logging.getLogger("famx").removeHandler(self)
        with contextlib.suppress(OSError):  # closing tries to write the same record again
            self.close()
        raise


def _step(line: str) -> int:
    """Returns the step of a line of metrics.jsonl; a huge number if the line is no report."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return 2**63
    return step if type(step) is int else 2**63
