"""Tables of Hugging Face data sets: from the hub, or from local folders of several kinds."""

import contextlib
import glob
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies

from famx.data._fingerprint import digest, stamp_of
from famx.data._paths import existing_path, typed_path
from famx.data._tables import read_file_table, read_table
from famx.data.base import check_split
from famx.notation import UserError, suggest

if TYPE_CHECKING:
    from datasets import Dataset

# branch in which the hub stores data sets that are code as parquet: SUBSET/SPLIT/0000.parquet
PARQUET = "refs/convert/parquet"
# columns of file names in a table SPLIT.csv or SPLIT.tsv
FILE_COLUMNS = ("path", "file_name", "audio")
# other names of a split
ALIASES = {"validation": ("dev", "valid")}


def source_split_of(split: str, known: Sequence[str], path: str, splits: Sequence[str]) -> str:
    """Returns what a split is called in the data set, after a check of the options.

    Args:
        known: names of the splits that famx knows.
        path, splits: the options of these names.

    Raises:
        UserError: there is no such split, or an option is missing.
    """
    check_split(split, known)
    if not path:
        raise UserError("it needs a data set, data.path=OWNER/NAME or a folder")
    if len(splits) != len(known):
        raise UserError(
            f"data.splits={list(splits)} must name three splits, for train, dev and test"
        )
    return splits[known.index(split)]


def load_table(path: str, subset: str, split: str, audio: str = "") -> "Dataset":
    """Loads a split, or the slices and sums of splits that `split` requests.

    Args:
        path: OWNER/NAME on the hub, or a folder.
        subset: configuration of the data set, if it has several.
        split: such as `train[:90%]+validation`.
        audio: column of the recordings; empty for data without recordings.

    Raises:
        UserError: the data set or a split does not exist, or cannot be read.
    """
    from datasets import ReadInstruction, concatenate_datasets

    # `train[:90%]+validation` is a slice of the split train, and all of validation
    tables = []
    with _errors_of(path):
        for part in split.split("+"):
            name = part.partition("[")[0]
            table = _load_split(path, subset, name, audio)
            [selected] = ReadInstruction.from_spec(part).to_absolute({name: len(table)})
            tables.append(table.select(range(selected.from_, selected.to)))
        return concatenate_datasets(tables)


def parquet_files(path: str, subset: str, split: str) -> list[str]:
    """Returns the addresses of the parquet files of a split, none of which is read.

    Args:
        path, subset: as for `load_table`.

    Raises:
        UserError: the data set or the split does not exist, or its files are of another kind.
    """
    from datasets import load_dataset_builder

    folder = existing_path(typed_path(path))
    with _errors_of(path):
        if folder.is_dir():
            patterns = _files_by_split(folder) if glob.has_magic(str(folder)) else None
            builder = load_dataset_builder(str(folder), subset or None, data_files=patterns)
        else:
            _detect_offline()
            repository, _, revision = path.partition("@")
            if revision == PARQUET:
                pattern = _parquet_pattern(path, subset, split)
                builder = load_dataset_builder("parquet", data_files={split: pattern})
            else:
                builder = load_dataset_builder(
                    repository, subset or None, revision=revision or None
                )
    files = {str(name): list(names) for name, names in (builder.config.data_files or {}).items()}
    if split not in files:
        raise _no_split(path, split, files)
    others = [file for file in files[split] if not file.endswith(".parquet")]
    if others:
        raise UserError(
            f"{path} has other files than parquet, such as {others[0]}, which are not streamed: "
            f"use data=hub, or data.path=OWNER/NAME@{PARQUET}, the copy that the hub makes"
        )
    return files[split]


@contextlib.contextmanager
def _errors_of(path: str) -> Iterator[None]:
    """Turns errors of the libraries into a sentence."""
    from datasets import config
    from datasets.exceptions import DatasetsError
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, DatasetsError, HfHubHTTPError) as error:
        # the messages of the libraries in one line
        message = f"{error} ({error.__cause__})" if error.__cause__ else str(error)
        if config.HF_HUB_OFFLINE:
            message = (
                f"it is neither a folder nor in the cache, and {constants.ENDPOINT} is out of reach"
            )
        raise UserError(f"data.path={path}: {' '.join(message.split())}") from error


def _load_split(path: str, subset: str, split: str, audio: str) -> "Dataset":
    """Loads a full split from a folder of any supported kind, or from the hub."""
    from datasets import load_dataset

    folder = existing_path(typed_path(path))
    # folders of save_to_disk
    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
        return _load_saved(path, folder, split)
    # tables of file names, also those of Common Voice
    if table := _table_of(path, folder, split):
        clips = folder / "clips"
        files = clips if clips.is_dir() else folder
        return read_file_table(table, FILE_COLUMNS, files, audio) if audio else read_table(table)
    # an audiofolder; the reader of `datasets` would need torchcodec, although nothing is decoded
    metadata = sorted((folder / split).glob("metadata.*"))
    if audio and metadata:
        return read_file_table(metadata[0], ("file_name",), folder / split, audio)
    # a folder of parquet files
    if folder.is_dir():
        patterns = _files_by_split(folder) if glob.has_magic(str(folder)) else None
        return load_dataset(
            str(folder),
            subset or None,
            data_files=patterns,
            split=split,
            cache_dir=_cache_of(folder),
        )
    # the hub
    _detect_offline()
    repository, _, revision = path.partition("@")
    if revision == PARQUET:
        pattern = _parquet_pattern(path, subset, split)
        return load_dataset("parquet", data_files={split: pattern}, split=split)
    return load_dataset(repository, subset or None, split=split, revision=revision or None)


def _parquet_pattern(path: str, subset: str, split: str) -> str:
    """Returns the pattern of the files of a split in the branch that the hub makes."""
    return f"hf://datasets/{path}/{subset or 'default'}/{split}/*.parquet"


def _load_saved(path: str, folder: Path, split: str) -> "Dataset":
    """Loads a split that `save_to_disk` wrote, without the format that it was saved in."""
    from datasets import Dataset, load_from_disk

    saved = load_from_disk(str(folder))
    # a single data set has one split, whose name is rarely set
    tables = {str(saved.split or "train"): saved} if isinstance(saved, Dataset) else saved
    if split not in tables:
        raise _no_split(path, split, tables)
    return tables[split].with_format(None)


def _table_of(path: str, folder: Path, split: str) -> Path | None:
    """Returns the table SPLIT.csv or SPLIT.tsv in a folder; None if the folder has no tables.

    Raises:
        UserError: there are tables, but none of this split.
    """
    for name in (split, *ALIASES.get(split, ())):
        for suffix in (".csv", ".tsv"):
            table = folder / (name + suffix)
            if table.is_file():
                return table
    # tables of file names alone: other data files have splits of their own
    tables = sorted(file.stem for file in folder.glob("*.csv")) if folder.is_dir() else []
    if "train" in tables and not (folder / split).exists():
        raise _no_split(path, split, tables)
    return None


def _no_split(path: str, split: str, names: Collection[str]) -> UserError:
    """Returns the error that a data set has no such split, with a way out."""
    remedy = suggest(split, names)
    if len(names) == 1:
        [name] = names
        remedy += f"; data.splits=[{name}[:80%],{name}[80%:90%],{name}[90%:]] divides it"
    return UserError(f"{path} has no split {split!r}{remedy}")


def _cache_of(folder: Path) -> str:
    """Returns the folder in which `datasets` caches the content of a folder as it is now.

    `datasets` itself recognises a changed file by its time alone, which copying programs preserve.
    """
    from datasets import config

    stamps = [f"{file} {stamp_of(file)}" for file in sorted(folder.resolve().rglob("*"))]
    return str(Path(config.HF_DATASETS_CACHE) / f"famx-{digest(stamps)[:16]}")


def _files_by_split(folder: Path) -> dict[str, list[str]]:
    """Returns the patterns of the files of each split in a folder.

    `datasets` would read the name of the folder as a pattern: `corpus[1]` as `corpus1`.
    """
    from datasets.data_files import get_data_patterns

    escaped = glob.escape(str(folder.resolve()))
    files = {}
    for split, patterns in get_data_patterns(escaped).items():
        files[str(split)] = [f"{escaped}/{pattern}" for pattern in patterns]
    return files


def _detect_offline() -> None:
    """Restricts the libraries to their cache if there is no network.

    Otherwise each of them would retry for half a minute.
    """
    from datasets import config
    from huggingface_hub import constants

    if getproxies():
        return  # behind a proxy, names may not be resolvable here
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except socket.gaierror:
        config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True


def require_columns(names: Collection[str], path: str, columns: Mapping[str, str]) -> None:
    """Checks that the columns of a table have those that options name; an empty name needs none.

    Raises:
        UserError: it does not.
    """
    for option, column in columns.items():
        if column and column not in names:
            similar = suggest(column, names)
            raise UserError(f"{path} has no column data.{option}={column}{similar}")
