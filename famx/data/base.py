"""Speech as a table of recordings: decoded, mixed to mono, resampled to 16 kHz and kept in memory."""

import logging
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int16

from famx.data._audio import _length_or_refusal, _source, read_audio
from famx.data._tokenizers import train_tokenizer
from famx.nn.batch import Example
from famx.notation import Seconds, UserError
from famx.registry import suggest

if TYPE_CHECKING:
    from datasets import Dataset
    from tokenizers import Tokenizer

MEMORY = 2**30

log = logging.getLogger(__name__)


def basic(text: str) -> str:
    """NFKC, lower case, no punctuation or symbols but the apostrophe inside a word, single spaces."""
    text = (
        unicodedata.normalize("NFKC", text).lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    )
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return " ".join(word for word in (word.strip("'") for word in kept.split()) if word)


NORMALISERS: dict[str, Callable[[str], str]] = {"basic": basic}


def choose_split(split: str, splits: Sequence[str]) -> str:
    """`split`, which has to be one of `splits`."""
    if split not in splits:
        raise UserError(f"there is no split {split!r}{suggest(split, splits)}")
    return split


class Speech:
    """A map-style data set over a table of `id`, `text`, `speaker` and `seconds`; a subclass has `samples`."""

    splits: tuple[str, ...] = ("train", "dev", "test")
    unit = "seconds"
    normaliser = "basic"
    skip_bad = False

    def __init__(self, table: "Dataset | Mapping[str, Sequence[Any]]") -> None:
        self.ids: list[str] = list(table["id"])
        self.texts: list[str] = list(table["text"])
        self.speakers: list[str] = list(table["speaker"])
        self.lengths: list[Seconds] = list(table["seconds"])

    def samples(self, index: int) -> Int16[np.ndarray, " n"]:
        """One recording, 16 kHz mono."""
        raise NotImplementedError

    def at(self, epoch: int) -> "Speech":
        """The data set as it is in an epoch: some are dealt anew each time."""
        return self

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        return Example(
            self.ids[index],
            torch.from_numpy(self.samples(index)).float() / 2**15,
            self.texts[index],
        )

    def build_tokenizer(self, units: int = 0) -> "Tokenizer":
        """The blank, and characters of the texts or `units` subwords."""
        return train_tokenizer(self.texts, units=units)


class Recordings(Speech):
    """Speech in audio files of any format; only their headers are read at first.

    What is decoded once is kept as 16-bit samples, up to a gibibyte, so that later epochs decode and resample nothing.

    Args:
        audio: a table with the column `audio`: `path` and `bytes` of a file, one of them given.
        ids, texts, speakers: of its rows.
        skip_bad: leave bad recordings out and count them in one warning, where otherwise the first one is refused.
        max_seconds: longest recording that is taken.
    """

    def __init__(
        self,
        audio: "Dataset",
        ids: Sequence[str],
        texts: Sequence[str],
        speakers: Sequence[str],
        *,
        skip_bad: bool,
        max_seconds: Seconds,
    ) -> None:
        texts = [NORMALISERS[self.normaliser](text) for text in texts]
        found = [
            _length_or_refusal(_source(row), name, text, max_seconds)
            for row, name, text in zip(audio, ids, texts, strict=True)
        ]
        bad = [reason for reason in found if isinstance(reason, str)]
        if bad and not skip_bad:
            raise UserError(bad[0])
        if bad:
            log.warning(
                "%d of %d recordings are left out; the first: %s", len(bad), len(found), bad[0]
            )
        if len(bad) == len(found):
            raise UserError(
                f"none of {len(found)} recordings can be used{'; ' + bad[0] if bad else ''}"
            )
        kept = [index for index, seconds in enumerate(found) if not isinstance(seconds, str)]
        columns = {"id": ids, "text": texts, "speaker": speakers, "seconds": found}
        super().__init__(
            {name: [column[index] for index in kept] for name, column in columns.items()}
        )
        self.skip_bad = skip_bad
        self._audio = audio.select(kept)
        self._decoded: dict[int, np.ndarray] = {}
        self._room = MEMORY

    def samples(self, index: int) -> Int16[np.ndarray, " n"]:
        found = self._decoded.get(index)
        if found is None:
            signal = read_audio(_source(self._audio[index]), self.ids[index])
            # rounded also when there is no room, so that an item never depends on what was read before it
            found = (signal * 2**15).round().clamp(-(2**15), 2**15 - 1).to(torch.int16).numpy()
            if found.nbytes <= self._room:
                self._room -= found.nbytes
                self._decoded[index] = found
        return found
