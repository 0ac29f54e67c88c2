"""The rows of manifests of any form, and those that belong to a split."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from famx.data import _lhotse_rows
from famx.data._json_rows import SUFFIXES, read_json_lines
from famx.data._kaldi_rows import read_kaldi
from famx.data._lhotse_rows import read_cuts
from famx.data._paths import RecordingFolder
from famx.data._rows import Row
from famx.data._tsv_rows import read_tsv
from famx.notation import UserError

DEFAULT_DEV = "dev.tsv"

log = logging.getLogger(__name__)


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
        _refuse_other_form(folder / DEFAULT_DEV, train)
        dev = None
    manifest = {"train": train, "dev": dev or train, "test": test}[split]
    rows = _read_manifest(folder, manifest, allow_outside)
    if dev or split == "test":
        return rows
    # without a manifest of its own, dev is a tenth of train
    dev_files = _sample_tenth(rows)
    if not dev_files:
        raise UserError(
            f"{folder / train} names {len({row.file for row in rows})} different files; dev is a "
            "tenth of at least 10: set data.dev"
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
    """Reads all rows of a manifest, whose format is that of its name."""
    manifest = folder / name
    if not _is_manifest(manifest):
        other = _other_form(manifest)
        if manifest.is_dir():
            raise UserError(
                f"there is no file {manifest / 'wav.scp'}, which a folder in the form of Kaldi has"
            )
        remedy = ": data.root=DIR names the folder of it"
        if other:
            remedy = f"; there is {other.name}, which data.train, data.dev or data.test can name"
        raise UserError(f"there is no manifest {manifest}{remedy}")
    if manifest.is_dir():
        reader = read_kaldi
    elif name.endswith(_lhotse_rows.SUFFIX):
        reader = read_cuts
    else:
        reader = read_json_lines if manifest.suffix in SUFFIXES else read_tsv
    rows = list(reader(manifest, RecordingFolder(folder, allow_outside)))
    if not rows:
        raise UserError(f"the manifest {manifest} is empty")
    return rows


def _refuse_other_form(dev: Path, train: str) -> None:
    """Raises a UserError if dev has a manifest in another form than its default, as train has."""
    other = _other_form(dev)
    if other and not train.endswith(".tsv"):
        raise UserError(
            f"there is no manifest {dev}, and there is {other.name}: set data.dev={other.name}, "
            f"or data.dev=null to hold out a tenth of {train}"
        )


def _other_form(manifest: Path) -> Path | None:
    """Returns the manifest of the same name in another form, None if there is none."""
    stem = manifest.name.removesuffix(".gz").rpartition(".")[0] or manifest.name
    for suffix in (".tsv", *SUFFIXES, _lhotse_rows.SUFFIX, ""):
        other = manifest.parent / (stem + suffix)
        if other != manifest and _is_manifest(other):
            return other
    return None


def _is_manifest(path: Path) -> bool:
    """Returns whether a path is a file, or a folder in the form of Kaldi."""
    return path.is_file() or (path / "wav.scp").is_file()
