"""Rows of parquet files, here or on the hub, read in windows, in another order in each pass."""

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from famx.data._fingerprint import digest
from famx.notation import Seconds, StreamError, UserError
from famx.seeding import numpy_rng

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset
    from pyarrow.parquet import FileMetaData

# before a file is read again that could not be read
RETRY_DELAYS: tuple[Seconds, ...] = (1.0, 4.0, 16.0)
MAX_THREADS = 16

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class RowGroup(NamedTuple):
    """A row group of a parquet file, the smallest part of it that is read.

    Args:
        file: number of the file.
        number: number of the row group in the file.
        start: number of its first row among those of all files.
        n_rows: number of its rows.
    """

    file: int
    number: int
    start: int
    n_rows: int


class Window(NamedTuple):
    """Rows of a stream, and their numbers among those of all files."""

    table: "Dataset"
    rows: list[int]


class ParquetStream:
    """The rows of parquet files, of which one window is in memory at a time.

    In each pass over the files, the row groups of all files are shuffled, as a function of the seed
    and the number of the pass, and divided into windows. So the number of a window is all that
    resuming needs: it says which rows of which files follow, and none before them is read again.

    Args:
        label: name of the stream in messages.
        files: addresses of the files, which fsspec opens; at least one.
        columns: columns that are read.
        seed: seed of the order of the row groups.
        n_rows: desired number of rows of a window, which has at least one row group.

    Raises:
        UserError: a file is damaged, there are no rows, or a column is missing.
        StreamError: a file cannot be read.
    """

    def __init__(
        self, label: str, files: Sequence[str], columns: Sequence[str], seed: int, n_rows: int
    ) -> None:
        self._label = label
        self._files = list(files)
        self._columns = list(dict.fromkeys(columns))
        self._seed = seed
        with ThreadPoolExecutor(MAX_THREADS) as threads:
            self._footers = list(threads.map(self._read_footer, range(len(files))))
        self.column_names: list[str] = self._footers[0].schema.to_arrow_schema().names
        self.groups = self._list_groups()
        self.n_rows = sum(group.n_rows for group in self.groups)
        if not self.n_rows:
            raise UserError(f"{label} has no rows")
        # of similar numbers of row groups
        desired = round(self.n_rows / n_rows)
        self.n_windows = min(max(1, desired), len(self.groups))

    def window(self, number: int) -> Window:
        """Reads a window; those of pass p are p·n_windows, ..., (p + 1)·n_windows - 1.

        Raises:
            StreamError: a file cannot be read, even after some time.
        """
        number_of_pass, position = divmod(number, self.n_windows)
        rng = numpy_rng(self._seed, "row groups", number_of_pass)
        order = rng.permutation(len(self.groups))
        selected = np.array_split(order, self.n_windows)[position]
        return self._read([self.groups[index] for index in selected], self._columns)

    def all_rows(self) -> Window:
        """Reads all rows in the order of the files.

        Raises:
            StreamError: a file cannot be read, even after some time.
        """
        return self._read(self.groups, self._columns)

    def first_rows(self, n_rows: int, column: str) -> "Dataset":
        """Reads one column of the first row groups that have at least so many rows together.

        Raises:
            StreamError: a file cannot be read, even after some time.
        """
        before = itertools.accumulate((group.n_rows for group in self.groups), initial=0)
        pairs = zip(before, self.groups, strict=False)
        groups = [group for n_before, group in pairs if n_before < n_rows]
        return self._read(groups, [column]).table

    def fingerprint(self) -> str:
        """Returns a digest of the sizes of the files and their row groups, without their names."""
        return digest(footer.to_dict() for footer in self._footers)

    def _read(self, groups: Sequence[RowGroup], columns: Sequence[str]) -> Window:
        """Reads columns of row groups, in their order."""
        import pyarrow
        from datasets import Dataset

        with ThreadPoolExecutor(min(MAX_THREADS, len(groups))) as threads:
            tables = list(threads.map(lambda group: self._read_group(group, columns), groups))
        table = pyarrow.concat_tables(tables, promote_options="default")
        rows: list[int] = []
        for group in groups:
            rows += range(group.start, group.start + group.n_rows)
        return Window(Dataset(table), rows)

    def _read_group(self, group: RowGroup, columns: Sequence[str]) -> "pyarrow.Table":
        import fsspec
        from pyarrow.parquet import ParquetFile

        def read() -> "pyarrow.Table":
            with fsspec.open(self._files[group.file], "rb") as source:
                file = ParquetFile(source, metadata=self._footers[group.file])
                # threads of pyarrow do not survive in forked processes
                return file.read_row_group(group.number, list(columns), use_threads=False)

        return self._with_retries(group.file, read)

    def _read_footer(self, file: int) -> "FileMetaData":
        import fsspec
        from pyarrow.parquet import read_metadata

        def read() -> "FileMetaData":
            with fsspec.open(self._files[file], "rb") as source:
                return read_metadata(source)

        return self._with_retries(file, read)

    def _with_retries(self, file: int, read: Callable[[], Result]) -> Result:
        """Returns what a function reads from a file; it is called again if the connection breaks.

        Raises:
            StreamError: the last attempt fails too.
            UserError: the file is damaged.
        """
        import pyarrow

        address = self._files[file]
        for delay in (*RETRY_DELAYS, None):
            try:
                return read()
            except pyarrow.ArrowException as error:
                raise UserError(f"{address} is damaged: {_one_line(error)}") from error
            except _connection_errors() as error:
                if delay is None:
                    raise StreamError(
                        f"{self._label} breaks: {address} could not be read in "
                        f"{len(RETRY_DELAYS) + 1} attempts ({_one_line(error)})"
                    ) from error
                log.warning(
                    "%s cannot be read (%s); the next attempt is in %g s",
                    address,
                    _one_line(error),
                    delay,
                )
                time.sleep(delay)
        raise AssertionError("the last attempt returns or raises")

    def _list_groups(self) -> list[RowGroup]:
        groups = []
        start = 0
        for file, footer in enumerate(self._footers):
            for number in range(footer.num_row_groups):
                n_rows = footer.row_group(number).num_rows
                if n_rows:
                    groups.append(RowGroup(file, number, start, n_rows))
                start += n_rows
        return groups


def _connection_errors() -> tuple[type[BaseException], ...]:
    """Returns the errors of files and of the library by which huggingface_hub connects."""
    from huggingface_hub.errors import HfHubHTTPError

    # httpx's are no OSErrors
    return (OSError, *HfHubHTTPError.__bases__)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
