"""Tables of recordings: text files whose values stay as they are written, and typed columns."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from famx.data._paths import existing_path
from famx.notation import UserError, suggest

if TYPE_CHECKING:
    from datasets import Dataset

Row = dict[str, str | None]


def read_file_table(
    table: Path, columns: Sequence[str], folder: Path, audio: str = "audio"
) -> "Dataset":
    """Reads a table of one recording per row, with the recordings as its column `audio`.

    Values stay as they are written: `007`, `1.50`, `true` and `null` are texts. Nothing is cached,
    so an edited table is always read anew.

    Args:
        table: a .csv, .tsv or .jsonl file in UTF-8.
        columns: names that the column of the file names may have; the first in the table is read.
        folder: folder of the files.
        audio: name of the column of the recordings. Another than "audio" is the name of the column
            of the file names.

    Raises:
        UserError: the table is of another format, damaged or empty, or lacks the columns.
    """
    from datasets import Dataset

    rows = _read_rows(table)
    # columns of all rows, in the order of their first occurrence
    names = dict.fromkeys(name for row in rows for name in row)
    candidates = [audio] if audio != "audio" else list(columns)
    column = next((name for name in candidates if name in names), None)
    if column is None:
        raise UserError(
            f"{table} has no column {' or '.join(candidates)}{suggest(candidates[0], names)}; "
            "data.audio names the one of the file names"
        )
    values: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in names}
    files = []
    for number, name in enumerate(values[column], 1):
        if not name or "\0" in name:
            raise UserError(f"{table}: row {number} has no file name in its column {column}")
        files.append({"path": str(existing_path(folder / name)), "bytes": None})
    return Dataset.from_dict(values | {audio: files})


def read_table(table: Path) -> "Dataset":
    """Reads a table without recordings, whose values stay as they are written.

    Raises:
        UserError: the table is of another format, damaged or empty.
    """
    from datasets import Dataset

    rows = _read_rows(table)
    names = dict.fromkeys(name for row in rows for name in row)
    return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})


def _read_rows(table: Path) -> list[Row]:
    """Reads the rows of a table.

    Raises:
        UserError: the table is of another format, damaged or empty.
    """
    readers = {".csv": _read_csv, ".tsv": _read_tsv, ".jsonl": _read_json_lines}
    if table.suffix not in readers:
        raise UserError(f"{table} is a {table.suffix} file{suggest(table.suffix, readers)}")
    try:
        rows = list(readers[table.suffix](table))
    except UnicodeDecodeError as error:
        raise UserError(f"{table} is not UTF-8: {error.reason} at byte {error.start}") from error
    except (csv.Error, ValueError, RecursionError) as error:
        raise UserError(f"{table} cannot be read: {error}") from error
    if not rows:
        raise UserError(f"the table {table} is empty")
    return rows


def _read_csv(table: Path) -> Iterator[Row]:
    with table.open(encoding="utf-8-sig", newline="") as lines:
        yield from _checked_rows(csv.DictReader(lines, strict=True))


def _read_tsv(table: Path) -> Iterator[Row]:
    # quotes are characters of the texts, as in Common Voice
    with table.open(encoding="utf-8-sig", newline="") as lines:
        yield from _checked_rows(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def _checked_rows(reader: "csv.DictReader[str]") -> Iterator[Row]:
    """Yields the rows, each of which must have as many values as there are columns."""
    for row in reader:
        if None in row or None in row.values():
            n_columns = len(reader.fieldnames or ())
            raise ValueError(f"line {reader.line_num} does not have {n_columns} values")
        yield dict(row)


def _read_json_lines(table: Path) -> Iterator[Row]:
    with table.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            # numbers as they are written
            row = json.loads(line, parse_int=str, parse_float=str)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is not an object")
            yield {name: as_text(value) for name, value in row.items()}


def text_column(table: "Dataset", column: str, option: str) -> list[str]:
    """Returns a column as texts: names of classes, numbers as digits, and "" for null.

    Args:
        option: option that names the column, for the error message.

    Raises:
        UserError: the column holds lists, mappings, or bytes.
    """
    from datasets import ClassLabel

    feature = table.features[column]
    values = table.select_columns([column])[column][:]
    texts = []
    for value in values:
        if isinstance(feature, ClassLabel) and value is not None:
            # -1 is a class that is not known
            value = feature.int2str(value) if value >= 0 else None
        text = as_text(value)
        if value is not None and text is None:
            raise UserError(
                f"{option}={column} holds {type(value).__name__} values, expected texts"
            )
        texts.append(text or "")
    return texts


def as_text(value: object) -> str | None:
    """Returns a plain value as text; None for null, and for lists, mappings and bytes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) else None
