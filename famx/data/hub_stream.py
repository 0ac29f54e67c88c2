"""A Hugging Face data set of parquet files whose training recordings are read while it trains."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from famx.data._hub_tables import parquet_files, require_columns, source_split_of
from famx.data._normalisers import NORMALISERS, Normaliser
from famx.data._parquet_stream import ParquetStream, Window
from famx.data._tables import text_column
from famx.data._tokenizers import train_tokenizer
from famx.data.base import Unknown, check_max_seconds
from famx.data.hub import Columns, Hub
from famx.notation import Seconds, Subwords, UserError
from famx.registry import register

TOKENIZER_ROWS = 20_000  # of whose texts the tokenizer is built


@register
class HubStream(Hub):
    """A data set of parquet files, of which one window of the training recordings is in memory.

    Nothing is downloaded before it is needed, and nothing is stored. An epoch of the run is a
    window: row groups from anywhere in the files, shuffled anew in each pass over them. dev and
    test are read completely. The tokenizer is that of the first 20,000 texts of train; characters
    that these lack are left out of the targets.

    Args:
        split: "train", "dev" or "test".
        seed: seed of the order of the row groups.
        path: OWNER/NAME on the hub, with @REVISION for another revision than the newest, or a
            folder of parquet files.
        subset: configuration of the data set, if it has several.
        splits: names of train, dev and test in the data set, in this order.
        audio, text: columns of the recordings and of the texts.
        speaker: column of the speakers; empty where there is none.
        window: number of recordings of a window, rounded to row groups.
        skip_bad: skips bad recordings and counts them; otherwise the first one is refused.
        max_seconds: longest recording that is accepted, in seconds.
        normaliser: normalisation of the texts, as in data=hub.
        unknown: what becomes of texts of dev and test with characters that train lacks.
    """

    def __init__(  # noqa: PLR0913
        self,
        split: str,
        seed: int,
        *,
        path: str = "",
        subset: str = "",
        splits: tuple[str, ...] = ("train", "validation", "test"),
        audio: str = "audio",
        text: str = "text",
        speaker: str = "",
        window: int = 512,
        skip_bad: bool = False,
        max_seconds: Seconds = 40.0,
        normaliser: Normaliser = "basic",
        unknown: Unknown = "replace",
    ) -> None:
        # the options
        self._source_split = source_split_of(split, self.splits, path, splits)
        check_max_seconds(max_seconds)
        if window < 1:
            raise UserError(f"data.window={window} must be at least 1 recording")
        self.skip_bad = skip_bad
        self.normaliser = normaliser
        self.unknown = unknown
        self._max_seconds = max_seconds
        self._keeps_empty = split != "train"
        # the stream, which must have the named columns
        self._columns = Columns(audio, text, speaker)
        names = [column for column in self._columns if column]
        files = parquet_files(path, subset, self._source_split)
        self._stream = ParquetStream(f"data.path={path}", files, names, seed, window)
        require_columns(self._stream.column_names, path, self._columns._asdict())
        # the first window, or all rows
        self._view: tuple[int, HubStream] | None = None
        if split == "train":
            self.n_streamed = self._stream.n_rows
            self._read_window(self._stream.window(0))
        else:
            self._read_window(self._stream.all_rows())

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        from datasets import load_from_disk

        options = super().example(folder)
        files = folder / "parquet"
        for split, table in load_from_disk(options["path"]).items():
            for shard in range(2):
                file = files / f"{split}-{shard:05d}-of-00002.parquet"
                table.shard(2, shard).to_parquet(file, batch_size=2)
        return options | {"path": str(files), "window": 5}

    def at(self, epoch: int) -> "HubStream":
        if epoch == 0 or not self.n_streamed:
            return self
        # the last window stays in memory, since it is requested several times
        if self._view is None or self._view[0] != epoch:
            view = copy.copy(self)
            view._view = None
            view._read_window(self._stream.window(epoch))
            self._view = (epoch, view)
        return self._view[1]

    def build_tokenizer(
        self,
        vocab_size: int = 0,
        special_tokens: Sequence[str] = (),
        subwords: Subwords = "bpe",
    ) -> Tokenizer:
        """Builds a tokenizer of the first texts in the files."""
        column = self._columns.text
        table = self._stream.first_rows(TOKENIZER_ROWS, column)
        normalise = NORMALISERS[self.normaliser]
        texts = [normalise(text) for text in text_column(table, column, "data.text")]
        return train_tokenizer(texts, special_tokens, vocab_size, subwords)

    def fingerprint(self) -> dict[str, str]:
        return super().fingerprint() | {"files": self._stream.fingerprint()}

    def use_cache(self, n_bytes: int) -> None:
        # each training recording is read once
        if not self.n_streamed:
            super().use_cache(n_bytes)

    def _read_window(self, window: Window) -> None:
        names = [f"{self._source_split}[{row}]" for row in window.rows]
        self._read_table(window.table, self._columns, names)
