"""A table of audio files that are decoded when they are read."""

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int16

from famx.data._audio import read_audio
from famx.data._audio_table import AudioFiles, AudioTable, Extent, audio_source, extent_of
from famx.data._cache import SampleCache
from famx.data._durations import read_durations
from famx.data._normalisers import NORMALISERS
from famx.notation import SAMPLE_RATE, Seconds, UserError

# samples that a decoded recording may have more than its header states or its packets sum up to
TOLERANCE = 1024

log = logging.getLogger(__name__)


class Recordings:
    """Audio files of any format with normalised texts; the constructor reads only the headers.

    `use_cache` stores decoded samples as 16-bit integers, so that later epochs decode and resample
    nothing.

    Args:
        audio: table with the column `audio`: the `path` or the `bytes` of each file. The duration
            that a list states is used as it is, and examined when the recording is decoded.
        ids: names of the recordings.
        texts: texts of the recordings, before normalisation.
        speakers: speakers of the recordings.
        skip_bad: skips bad recordings and counts them in one warning; otherwise the first one is
            refused.
        max_seconds: longest duration that is accepted, in seconds.
        normaliser: normalisation of the texts, a name in NORMALISERS.
        keep_empty: whether texts are kept of which normalisation leaves nothing, such as
            `(laughs)`. All that is recognised there is an insertion.

    Attributes:
        ids, texts, speakers, lengths: one per usable recording; lengths in seconds.

    Raises:
        UserError: a recording is bad and `skip_bad` is False, or none is usable.
    """

    def __init__(
        self,
        audio: AudioTable,
        ids: Sequence[str],
        texts: Sequence[str],
        speakers: Sequence[str],
        *,
        skip_bad: bool,
        max_seconds: Seconds,
        normaliser: str = "basic",
        keep_empty: bool = False,
    ) -> None:
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.speakers: list[str] = []
        self.lengths: list[Seconds] = []
        # rows of `audio` with usable recordings, and the errors of the others
        usable: list[int] = []
        errors: list[str] = []
        # texts first, since reading the headers takes longer
        normalised = [NORMALISERS[normaliser](text) for text in texts]
        durations = read_durations(audio, ids)
        table = zip(durations, ids, texts, normalised, speakers, strict=True)
        for index, (duration, name, written, text, speaker) in enumerate(table):
            try:
                seconds = _check_recording(duration, name, max_seconds)
                if not text and not (keep_empty and written.strip()):
                    raise UserError(f"{name} has no words in its text")
            except UserError as error:
                if not skip_bad:
                    raise
                errors.append(str(error))
                continue
            usable.append(index)
            self.ids.append(name)
            self.texts.append(text)
            self.speakers.append(speaker)
            self.lengths.append(seconds)

        if errors:
            log.warning(
                "%d of %d recordings are left out; the first: %s", len(errors), len(ids), errors[0]
            )
        n_empty = self.texts.count("")
        if n_empty:
            log.warning(
                "%d of %d texts are empty after normalisation, the first that of %s: what is "
                "recognised there counts as insertions",
                n_empty,
                len(ids),
                self.ids[self.texts.index("")],
            )
        if not usable:
            first = f"; {errors[0]}" if errors else ""
            raise UserError(f"none of {len(ids)} recordings can be used{first}")
        self._audio = audio.select(usable)
        self._cache = SampleCache([], 0)

    def __len__(self) -> int:
        return len(self.ids)

    def files(self) -> list[str]:
        """Returns the paths of the recordings; none if their bytes are in the table."""
        if not isinstance(self._audio, AudioFiles):
            return []
        return self._audio.paths

    def starts(self) -> list[tuple[str, Seconds]]:
        """Returns the names of the recordings that are parts of files, and where they begin."""
        starts = []
        for index, name in enumerate(self.ids):
            start = extent_of(self._audio, index).start
            if start is not None:
                starts.append((name, start))
        return starts

    def use_cache(self, n_bytes: int) -> None:
        """Stores decoded samples in at most `n_bytes` of memory, which forked processes share."""
        if n_bytes == self._cache.n_bytes:  # another loader reads the same recordings
            return
        sizes = [math.ceil(seconds * SAMPLE_RATE) + TOLERANCE for seconds in self.lengths]
        self._cache = SampleCache(sizes, n_bytes)

    def samples(self, index: int) -> Int16[np.ndarray, " n"]:
        """Returns the samples of one recording, 16 kHz mono.

        Raises:
            UserError: it cannot be decoded, or is not as long as its list states.
        """
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        name = self.ids[index]
        extent = extent_of(self._audio, index)
        source = audio_source(self._audio[index]["audio"], name)
        signal = read_audio(source, name, extent.start, extent.seconds)
        _check_stated(extent, len(signal) / SAMPLE_RATE, name)
        # 16 bits without loss, even without a cache
        samples = (signal * 2**15).to(torch.int16).numpy()
        if not samples.any():
            raise UserError(f"{name} is silent: all its samples are equal")
        self._cache.put(index, samples)
        return samples


def _check_stated(extent: Extent, actual: Seconds, name: str) -> None:
    """Raises a UserError if a recording is not as long as its list states, up to rounding."""
    stated = extent.seconds
    if stated is None or abs(actual - stated) <= TOLERANCE / SAMPLE_RATE:
        return
    if extent.start is None:
        raise UserError(
            f"{name} is {actual:,.2f} s long, and its line states {stated:,.2f} s; correct the "
            "line, or leave the duration out to have it read"
        )
    raise UserError(
        f"{name} is {actual:,.2f} s long, and its line states {stated:,.2f} s from "
        f"{extent.start:,.2f} s on; correct the line, since the file ends there"
    )


def _check_recording(duration: Seconds | UserError, name: str, max_seconds: Seconds) -> Seconds:
    """Returns the duration of a recording.

    Raises:
        UserError: its header is bad, or it is too long.
    """
    if isinstance(duration, UserError):
        raise duration
    if duration > max_seconds:
        raise UserError(
            f"{name} is {duration:,.1f} s long, over the limit of {max_seconds:,.1f} s "
            "(data.max_seconds)"
        )
    return duration
