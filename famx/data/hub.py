"""A Hugging Face data set with an audio and a text column, from the hub or from a local folder."""

import csv
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np
from jaxtyping import Int16

from famx.data._example import write_corpus
from famx.data._recordings import Recordings
from famx.data.base import Speech, check_split
from famx.notation import Seconds, UserError, suggest
from famx.registry import register

if TYPE_CHECKING:
    from datasets import Dataset

# branch in which the hub stores data sets that are code as parquet: SUBSET/SPLIT/0000.parquet
PARQUET = "refs/convert/parquet"


@register
class Hub(Speech):
    """A data set as `datasets.load_dataset(path, subset)` loads it; code inside it is never run.

    Args:
        split: "train", "dev" or "test".
        path: OWNER/NAME on the hub, with @REVISION for another revision than the newest. Or a
            folder: of `save_to_disk`, of parquet files, an audiofolder, or one of Common Voice with
            SPLIT.tsv and `clips`.
        subset: configuration of the data set, if it has several.
        splits: names of train, dev and test in the data set, in this order; each may be a slice
            such as `train[:90%]`.
        audio: column of the recordings ("audio" in an audiofolder and in Common Voice).
        text: column of the texts.
        speaker: column of the speakers; empty where there is none.
        skip_bad: skips bad recordings and counts them; otherwise the first one is refused.
        max_seconds: longest recording that is accepted, in seconds.
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
    ) -> None:
        from datasets import Audio

        # the options
        check_split(split, self.splits)
        if not path:
            raise UserError("data=hub needs a data set, data.path=OWNER/NAME or a folder")
        if len(splits) != len(self.splits):
            raise UserError(
                f"data.splits={list(splits)} must name three splits, for train, dev and test"
            )

        # the table of the split, which must have the named columns
        source_split = splits[self.splits.index(split)]
        table = _load(path, subset, source_split)
        for option, column in (("audio", audio), ("text", text), ("speaker", speaker)):
            if column and column not in table.column_names:
                raise UserError(
                    f"{path} has no column data.{option}={column}"
                    f"{suggest(column, table.column_names)}"
                )

        # the audio column, not decoded
        files = table.select_columns([audio]).rename_columns({audio: "audio"})
        files = files.cast_column("audio", Audio(decode=False))
        paths = files.flatten().select_columns(["audio.path"])["audio.path"]
        # the text columns; a missing text is treated as empty
        texts = [value or "" for value in table.select_columns([text])[text]]
        speakers = [""] * len(table)
        if speaker:
            speakers = [str(value) for value in table.select_columns([speaker])[speaker]]

        # a recording without a file is named after its row
        ids = [file or f"{source_split}[{index}]" for index, file in enumerate(paths)]

        self._recordings = Recordings(
            files,
            ids=ids,
            texts=texts,
            speakers=speakers,
            skip_bad=skip_bad,
            max_seconds=max_seconds,
        )
        self.skip_bad = skip_bad
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

    def use_cache(self, n_bytes: int) -> None:
        self._recordings.use_cache(n_bytes)

    def samples(self, index: int) -> Int16[np.ndarray, " n"]:
        return self._recordings.samples(index)


def _load(path: str, subset: str, split: str) -> "Dataset":
    """Loads a split, or the slice of it that `split` requests.

    Raises:
        UserError: the data set or the split does not exist, or cannot be read.
    """
    from datasets import ReadInstruction, config
    from datasets.exceptions import DatasetsError
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    # `train[:90%]` is a slice of the split train, which is selected below
    name = split.partition("[")[0]
    try:
        table = _load_split(path, subset, name)
        [part] = ReadInstruction.from_spec(split).to_absolute({name: len(table)})
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
    return table.select(range(part.from_, part.to))


def _load_split(path: str, subset: str, split: str) -> "Dataset":
    """Loads a full split from a folder of any supported kind, or from the hub."""
    from datasets import load_dataset, load_from_disk

    folder = Path(path).expanduser()
    # a folder of save_to_disk
    if (folder / "dataset_dict.json").is_file():
        tables = load_from_disk(str(folder))
        if split not in tables:
            raise UserError(f"{path} has no split {split!r}{suggest(split, tables)}")
        return tables[split]
    # Common Voice
    if (folder / f"{split}.tsv").is_file():
        return _load_file_table(
            folder / f"{split}.tsv",
            "path",
            folder / "clips",
            delimiter="\t",
            quoting=csv.QUOTE_NONE,
        )
    # an audiofolder; the reader of `datasets` would need torchcodec, although nothing is decoded
    if metadata := list((folder / split).glob("metadata.*")):
        return _load_file_table(metadata[0], "file_name", folder / split)
    # a folder of parquet files
    if folder.is_dir():
        return load_dataset(str(folder), subset or None, split=split)
    # the hub
    _detect_offline()
    repository, _, revision = path.partition("@")
    if revision == PARQUET:
        files = f"hf://datasets/{path}/{subset or 'default'}/{split}/*.parquet"
        return load_dataset("parquet", data_files={split: files}, split=split)
    return load_dataset(repository, subset or None, split=split, revision=revision or None)


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


def _load_file_table(table: Path, column: str, folder: Path, **options: Any) -> "Dataset":
    """Loads a table whose `column` names files of a folder, and adds them as its column `audio`."""
    from datasets import Dataset

    readers = {".csv": Dataset.from_csv, ".tsv": Dataset.from_csv, ".jsonl": Dataset.from_json}
    if table.suffix not in readers:
        raise UserError(f"{table} is a {table.suffix} file{suggest(table.suffix, readers)}")
    rows = readers[table.suffix](str(table), **options)

    def add_audio(row: Mapping[str, Any]) -> dict[str, Any]:
        return {"audio": {"path": str(folder / row[column]), "bytes": None}}

    return rows.map(add_audio)
