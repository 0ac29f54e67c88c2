"""The lines of manifests: PATH<TAB>TEXT[<TAB>SPEAKER], and those that belong to a split."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from famx.data._paths import RecordingFolder
from famx.notation import UserError

DEFAULT_DEV = "dev.tsv"

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """A line of a manifest: its three columns, and the absolute path of the file."""

    path: str
    text: str
    speaker: str
    file: str


def rows_of_split(
    folder: Path,
    split: str,
    train: str,
    dev: str | None,
    test: str,
    allow_outside: bool = True,
) -> list[Row]:
    """Reads the lines that belong to a split.

    Args:
        folder: folder of the manifests.
        split: "train", "dev" or "test".
        train, dev, test: names of the manifests. Without one of dev, a tenth of train is dev.
        allow_outside: see `RecordingFolder`.

    Raises:
        UserError: a manifest is missing, empty or damaged, or a recording cannot be used.
    """
    # dev.tsv is optional, another name is not
    is_missing = dev == DEFAULT_DEV and not (folder / dev).exists()
    if is_missing:
        dev = None
    manifest = {"train": train, "dev": dev or train, "test": test}[split]
    rows = _read_manifest(folder, manifest, allow_outside)
    if dev or split == "test":
        return rows
    # without a manifest of its own, dev is a tenth of train
    dev_files = _sample_tenth(rows)
    if not dev_files:
        raise UserError(
            f"{folder / train} has too few lines for a tenth of them to be dev; set data.dev"
        )
    if is_missing:
        log.warning(
            "there is no %s: %d of the %d recordings of %s are dev and not trained on, a tenth of "
            "each text where texts repeat; data.dev=FILE names others, data.dev=null accepts these",
            folder / DEFAULT_DEV,
            len(dev_files),
            len({row.file for row in rows}),
            train,
        )
    return [row for row in rows if (row.file in dev_files) == (split == "dev")]


def _sample_tenth(rows: Sequence[Row]) -> set[str]:
    """Returns a tenth of the files, spread over the texts; the order of the lines has no effect.

    Every tenth line could be all recordings of one prompt, which train would then lack.
    """
    texts = {row.file: row.text for row in rows}
    # by text, and the recordings of a text in random order
    order = sorted((text, _random_key(file), file) for file, text in texts.items())
    return {file for _, _, file in order[9::10]}


def _random_key(file: str) -> bytes:
    # of the name alone, so that a moved folder has the same dev
    return hashlib.sha256(Path(file).name.encode(errors="surrogateescape")).digest()


def _read_manifest(folder: Path, name: str, allow_outside: bool) -> list[Row]:
    """Reads all lines of a manifest."""
    manifest = folder / name
    if not manifest.is_file():
        raise UserError(f"there is no manifest {manifest}: data.root=DIR names the folder of it")
    try:
        # with or without the byte order mark of Windows
        lines = manifest.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{manifest} is not UTF-8: {error.reason} at byte {error.start}") from error
    recordings = RecordingFolder(folder, allow_outside)
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            rows.append(_parse_line(line, recordings, f"{manifest}, line {number}"))
    if not rows:
        raise UserError(f"the manifest {manifest} is empty")
    return rows


def _parse_line(line: str, folder: RecordingFolder, location: str) -> Row:
    """Parses a line of a manifest, whose recording must be a file."""
    columns = line.rstrip("\r").split("\t")
    if len(columns) not in (2, 3):
        raise UserError(
            f"{location}: {len(columns) - 1} tabs, expected PATH<TAB>TEXT[<TAB>SPEAKER]"
        )
    path, text, speaker = [*columns, ""][:3]
    return Row(path, text, speaker, folder.locate(path, location))
