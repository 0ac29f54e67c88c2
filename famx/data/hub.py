"""A Hugging Face data set with an audio and a text column, from the hub or from a local folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int16

from famx.data._example import write_corpus
from famx.data._hub_tables import load_table, require_columns, source_split_of
from famx.data._normalisers import Normaliser
from famx.data._recordings import Recordings
from famx.data._tables import text_column
from famx.data.base import Speech, Unknown, check_max_seconds
from famx.notation import Seconds, UserError
from famx.registry import register

if TYPE_CHECKING:
    from datasets import Dataset


class Columns(NamedTuple):
    """Names of the columns of a table; that of the speakers is empty where there is none."""

    audio: str
    text: str
    speaker: str


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
        # the table of the split, which must have the named columns
        source_split = source_split_of(split, self.splits, path, splits)
        check_max_seconds(max_seconds)
        table = load_table(path, subset, source_split, audio)
        columns = Columns(audio, text, speaker)
        require_columns(table.column_names, path, columns._asdict())

        # its recordings
        self.skip_bad = skip_bad
        self.normaliser = normaliser
        self.unknown = unknown
        self._max_seconds = max_seconds
        self._keeps_empty = split != "train"
        self._read_table(table, columns, [f"{source_split}[{row}]" for row in range(len(table))])

    def _read_table(self, table: "Dataset", columns: Columns, row_names: Sequence[str]) -> None:
        """Sets the examples to those of a table.

        Args:
            row_names: names of the rows, for recordings without a file.
        """
        files = _audio_column(table, columns.audio)
        paths = _paths(files)
        self._files = [path for path in paths if path and Path(path).is_absolute()]
        speakers = [""] * len(table)
        if columns.speaker:
            speakers = text_column(table, columns.speaker, "data.speaker")
        self._recordings = Recordings(
            files,
            ids=[file or name for file, name in zip(paths, row_names, strict=True)],
            texts=text_column(table, columns.text, "data.text"),
            speakers=speakers,
            skip_bad=self.skip_bad,
            max_seconds=self._max_seconds,
            normaliser=self.normaliser,
            keep_empty=self._keeps_empty,
        )
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
