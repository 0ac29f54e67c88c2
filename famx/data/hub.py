"""A Hugging Face data set with an audio and a text column, from the hub or from a local folder."""

import glob
import socket
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np
from jaxtyping import Int16

from famx.data._example import write_corpus
from famx.data._fingerprint import digest, stamp_of
from famx.data._normalisers import Normaliser
from famx.data._paths import existing_path, typed_path
from famx.data._recordings import Recordings
from famx.data._tables import read_file_table, text_column
from famx.data.base import Speech, Unknown, check_max_seconds, check_split
from famx.notation import Seconds, UserError, suggest
from famx.registry import register

if TYPE_CHECKING:
    from datasets import Dataset

# branch in which the hub stores data sets that are code as parquet: SUBSET/SPLIT/0000.parquet
PARQUET = "refs/convert/parquet"
# columns of file names in a table SPLIT.csv or SPLIT.tsv
FILE_COLUMNS = ("path", "file_name", "audio")
# other names of a split
ALIASES = {"validation": ("dev", "valid")}


@register
class Hub(Speech):
    """A data set as `datasets.load_dataset(path, subset)` loads it; code inside it is never run.

    Args:
        split: "train", "dev" or "test".
        path: OWNER/NAME on the hub, with @REVISION for another revision than the newest. Or a
            folder: of `save_to_disk`, of parquet files, an audiofolder, or one with SPLIT.csv or
            SPLIT.tsv, whose files are in the folder, or in `clips` as in Common Voice.
        subset: configuration of the data set, if it has several.
        splits: names of train, dev and test in the data set, in this order; each may be a slice
            such as `train[:90%]`, or a sum such as `train+validation`.
        audio: column of the recordings, or of their file names. By default, in an audiofolder it is
            `file_name`, and in a table `path` or `file_name`.
        text: column of the texts.
        speaker: column of the speakers; empty where there is none.
        skip_bad: skips bad recordings and counts them; otherwise the first one is refused.
        max_seconds: longest recording that is accepted, in seconds.
        normaliser: normalisation of the texts: lower case without punctuation ("basic"), Whisper's
            rules for English ("english", of the extra `english`), as written in NFC without
            invisible characters ("unicode"), or as written ("none").
        unknown: what becomes of texts of dev and test with characters that train lacks.
    """

    path_options = ("path",)

    def __init__(  # noqa: PLR0913
        self,
        split: str,
        *,
        path: str = "",
        subset: str = "",
        splits: tuple[str, ...] = ("train", "validation", "test"),
        audio: str = "audio",
        text: str = "text",
        speaker: str = "",
        skip_bad: bool = False,
        max_seconds: Seconds = 40.0,
        normaliser: Normaliser = "basic",
        unknown: Unknown = "replace",
    ) -> None:
        # the options
        check_split(split, self.splits)
        check_max_seconds(max_seconds)
        if not path:
            raise UserError("data=hub needs a data set, data.path=OWNER/NAME or a folder")
        if len(splits) != len(self.splits):
            raise UserError(
                f"data.splits={list(splits)} must name three splits, for train, dev and test"
            )

        # the table of the split, which must have the named columns
        source_split = splits[self.splits.index(split)]
        table = _load(path, subset, source_split, audio)
        _require_columns(table, path, {"audio": audio, "text": text, "speaker": speaker})

        # its columns
        files = _audio_column(table, audio)
        paths = _paths(files)
        self._files = [path for path in paths if path and Path(path).is_absolute()]
        texts = text_column(table, text, "data.text")
        speakers = [""] * len(table)
        if speaker:
            speakers = text_column(table, speaker, "data.speaker")

        # a recording without a file is named after its row
        ids = [file or f"{source_split}[{index}]" for index, file in enumerate(paths)]

        self._recordings = Recordings(
            files,
            ids=ids,
            texts=texts,
            speakers=speakers,
            skip_bad=skip_bad,
            max_seconds=max_seconds,
            normaliser=normaliser,
            keep_empty=split != "train",
        )
        self.skip_bad = skip_bad
        self.normaliser = normaliser
        self.unknown = unknown
        super().__init__(
            self._recordings.ids,
            self._recordings.texts,
            self._recordings.speakers,
            self._recordings.lengths,
        )

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        from datasets import Dataset, DatasetDict

        names = {"train": "train", "dev": "validation", "test": "test"}
        tables = {}
        for split, recordings in write_corpus(folder / "audio").items():
            rows = []
            for file, text, speaker in recordings:
                content = (folder / "audio" / file).read_bytes()
                audio = {"path": file, "bytes": content}
                rows.append({"audio": audio, "text": text, "voice": speaker})
            tables[names[split]] = Dataset.from_list(rows)
        DatasetDict(tables).save_to_disk(folder / "dataset")
        return {"path": str(folder / "dataset"), "speaker": "voice"}

    def files(self) -> Sequence[str]:
        return self._files

    def use_cache(self, n_bytes: int) -> None:
        self._recordings.use_cache(n_bytes)

    def samples(self, index: int) -> Int16[np.ndarray, " n"]:
        return self._recordings.samples(index)


def _audio_column(table: "Dataset", column: str) -> "Dataset":
    """Returns a table with the one column `audio`, whose recordings are not decoded.

    Raises:
        UserError: the column does not hold audio files.
    """
    import pyarrow
    from datasets import Audio, Value

    files = table.select_columns([column]).rename_columns({column: "audio"})
    # paths as pandas writes them
    if files.features["audio"] == Value("large_string"):
        files = files.cast_column("audio", Value("string"))
    try:
        return files.cast_column("audio", Audio(decode=False))
    # an array of samples, or null in all rows
    except (TypeError, ValueError, KeyError, ImportError, pyarrow.ArrowException) as error:
        kind = type(table.features[column]).__name__
        raise UserError(
            f"data.audio={column} is a column of {kind}, expected audio files: paths, bytes, or "
            f"a column of datasets.Audio; the columns are {', '.join(table.column_names)}"
        ) from error


def _paths(files: "Dataset") -> list[str | None]:
    """Returns the paths in the column `audio`, without reading the bytes beside them."""
    import pyarrow.compute

    paths = []
    for rows in files.with_format("arrow").iter(1000):
        paths += pyarrow.compute.struct_field(rows["audio"], "path").to_pylist()
    return paths


def _require_columns(table: "Dataset", path: str, columns: Mapping[str, str]) -> None:
    """Checks that a table has the columns that options name; an empty name needs none.

    Raises:
        UserError: it does not.
    """
    for option, column in columns.items():
        if column and column not in table.column_names:
            similar = suggest(column, table.column_names)
            raise UserError(f"{path} has no column data.{option}={column}{similar}")


def _load(path: str, subset: str, split: str, audio: str) -> "Dataset":
    """Loads a split, or the slices and sums of splits that `split` requests.

    Raises:
        UserError: the data set or a split does not exist, or cannot be read.
    """
    from datasets import ReadInstruction, concatenate_datasets, config
    from datasets.exceptions import DatasetsError
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    # `train[:90%]+validation` is a slice of the split train, and all of validation
    tables = []
    try:
        for part in split.split("+"):
            name = part.partition("[")[0]
            table = _load_split(path, subset, name, audio)
            [selected] = ReadInstruction.from_spec(part).to_absolute({name: len(table)})
            tables.append(table.select(range(selected.from_, selected.to)))
        return concatenate_datasets(tables)
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
        return read_file_table(table, FILE_COLUMNS, files, audio)
    # an audiofolder; the reader of `datasets` would need torchcodec, although nothing is decoded
    if metadata := sorted((folder / split).glob("metadata.*")):
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
        pattern = f"hf://datasets/{path}/{subset or 'default'}/{split}/*.parquet"
        return load_dataset("parquet", data_files={split: pattern}, split=split)
    return load_dataset(repository, subset or None, split=split, revision=revision or None)


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
