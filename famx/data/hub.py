"""A Hugging Face data set with an audio and a text column: from the hub, or a folder that lies on the disk."""

import csv
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from famx.data.base import Recordings, choose_split
from famx.notation import Seconds, UserError
from famx.registry import register, suggest

if TYPE_CHECKING:
    from datasets import Dataset

# the branch in which the hub keeps data sets that come as code, as parquet: CONFIGURATION/SPLIT/0000.parquet
PARQUET = "refs/convert/parquet"


@register
class Hub(Recordings):
    """What `datasets.load_dataset(path, subset)` finds, its audio read undecoded; no code of a data set is ever run.

    Args:
        path: of the data set on the hub, with @REVISION where not the newest is meant; or a folder: one that
            `save_to_disk` wrote, one of parquet files, an audiofolder, or Common Voice's with SPLIT.tsv and `clips`.
        subset: its configuration, where it has several (`name` is the part's own).
        splits: what it calls train, dev and test, in this order; each may be a slice, `train[:90%]`.
        audio: column of the recordings (of the last two kinds of folder it is `audio`).
        text: column of what is said.
        speaker: column of who speaks; empty where it has none.
        skip_bad: leave bad recordings out and count them, where otherwise the first one is refused.
        max_seconds: longest recording that is taken.
    """

    def __init__(
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

        choose_split(split, self.splits)
        if not path:
            raise UserError("data=hub needs a data set, data.path=OWNER/NAME or a folder")
        if len(splits) != len(self.splits):
            raise UserError(
                f"data.splits={list(splits)} has to name three splits, for train, dev and test"
            )
        theirs = splits[self.splits.index(split)]
        table = _load(path, subset, theirs)
        for option, column in (("audio", audio), ("text", text), ("speaker", speaker)):
            if column and column not in table.column_names:
                raise UserError(
                    f"{path} has no column data.{option}={column}{suggest(column, table.column_names)}"
                )
        recordings = table.select_columns([audio]).rename_columns({audio: "audio"})
        recordings = recordings.cast_column("audio", Audio(decode=False))
        paths = recordings.flatten().select_columns(["audio.path"])["audio.path"]
        ids = [file or f"{theirs}[{index}]" for index, file in enumerate(paths)]
        texts = [said or "" for said in table.select_columns([text])[text]]
        speakers = (
            [str(who) for who in table.select_columns([speaker])[speaker]]
            if speaker
            else [""] * len(table)
        )
        super().__init__(
            recordings, ids, texts, speakers, skip_bad=skip_bad, max_seconds=max_seconds
        )


def _load(path: str, subset: str, split: str) -> "Dataset":
    from datasets import ReadInstruction, config
    from datasets.exceptions import DatasetsError
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    whole = split.partition("[")[0]
    try:
        table = _load_whole(path, subset, whole)
        [part] = ReadInstruction.from_spec(split).to_absolute({whole: len(table)})
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, DatasetsError, HfHubHTTPError) as error:
        told = f"{error} ({error.__cause__})" if error.__cause__ else str(error)
        if config.HF_HUB_OFFLINE:
            told = (
                f"it is neither a folder nor in the cache, and {constants.ENDPOINT} is out of reach"
            )
        raise UserError(f"data.path={path}: {' '.join(told.split())}") from error
    return table.select(range(part.from_, part.to))


def _load_whole(path: str, subset: str, split: str) -> "Dataset":
    from datasets import load_dataset, load_from_disk

    folder = Path(path).expanduser()
    if (folder / "dataset_dict.json").is_file():
        saved = load_from_disk(str(folder))
        if split not in saved:
            raise UserError(f"{path} has no split {split!r}{suggest(split, saved)}")
        return saved[split]
    if (folder / f"{split}.tsv").is_file():
        return _beside(
            folder / f"{split}.tsv",
            "path",
            folder / "clips",
            delimiter="\t",
            quoting=csv.QUOTE_NONE,
        )
    if metadata := list((folder / split).glob("metadata.*")):
        # datasets' own audiofolder asks for torchcodec, although nothing is to be decoded
        return _beside(metadata[0], "file_name", folder / split)
    if folder.is_dir():
        return load_dataset(str(folder), subset or None, split=split)
    _notice_if_offline()
    repository, _, revision = path.partition("@")
    if revision == PARQUET:
        files = f"hf://datasets/{path}/{subset or 'default'}/{split}/*.parquet"
        return load_dataset("parquet", data_files={split: files}, split=split)
    return load_dataset(repository, subset or None, split=split, revision=revision or None)


def _notice_if_offline() -> None:
    """Without a network, lets only the cache be looked into: every library would retry for half a minute."""
    from datasets import config
    from huggingface_hub import constants

    if getproxies():
        return  # who looks names up for us
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except socket.gaierror:
        config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True


def _beside(table: Path, column: str, folder: Path, **options: Any) -> "Dataset":
    """A table whose `column` names files of a folder, with the files as its column `audio`."""
    from datasets import Dataset

    readers = {".csv": Dataset.from_csv, ".tsv": Dataset.from_csv, ".jsonl": Dataset.from_json}
    if table.suffix not in readers:
        raise UserError(f"{table} is a {table.suffix} file{suggest(table.suffix, readers)}")
    files = readers[table.suffix](str(table), **options)
    return files.map(lambda row: {"audio": {"path": str(folder / row[column]), "bytes": None}})
