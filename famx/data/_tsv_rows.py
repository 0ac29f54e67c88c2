"""Manifests of lines PATH<TAB>TEXT[<TAB>SPEAKER[<TAB>SECONDS]]."""

from collections.abc import Iterator
from pathlib import Path

from famx.data._paths import RecordingFolder
from famx.data._rows import Row, numbered_lines, parse_duration
from famx.notation import UserError

FEWEST_COLUMNS = 2
COLUMNS = 4


def read_tsv(manifest: Path, folder: RecordingFolder) -> Iterator[Row]:
    """Yields the rows of a manifest. A duration in the fourth column spares reading the header.

    Raises:
        UserError: a line has too few or too many columns, or names no file.
    """
    for location, line in numbered_lines(manifest):
        columns = line.split("\t")
        if not FEWEST_COLUMNS <= len(columns) <= COLUMNS:
            raise UserError(
                f"{location}: {len(columns) - 1} tabs, expected "
                "PATH<TAB>TEXT[<TAB>SPEAKER[<TAB>SECONDS]]"
            )
        path, text, speaker, written = [*columns, "", ""][:COLUMNS]
        file = folder.locate(path, location)
        seconds = parse_duration(written, "the fourth column", location) if written else None
        yield Row(path, text, speaker, file, seconds)
