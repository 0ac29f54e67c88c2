"""Speech as a table of recordings: decoded, mixed to mono, resampled to 16 kHz and kept in memory."""

import functools
import io
import logging
import math
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int16
from torch import Tensor, nn

from famx.notation import Seconds, UserError
from famx.registry import nearest

if TYPE_CHECKING:
    from datasets import Dataset
    from tokenizers import Tokenizer

SAMPLE_RATE = 16_000
BLANK = "<blank>"
MEMORY = 2**30
PIPED = 2**31 - 2**16

log = logging.getLogger(__name__)


class Example(NamedTuple):
    """One utterance (n samples of mono float in [-1, 1) at 16 kHz) or one stretch of text (n token ids)."""

    id: str
    signal: Tensor
    text: str


def draws(seed: int, purpose: str, epoch: int, index: int = 0) -> np.random.Generator:
    """A fresh generator for one purpose: equal arguments, equal draws, whatever was drawn before and by whom."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), epoch, index])


def basic(text: str) -> str:
    """NFKC, lower case, no punctuation or symbols but the apostrophe inside a word, single spaces."""
    text = unicodedata.normalize("NFKC", text).lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return " ".join(word for word in (word.strip("'") for word in kept.split()) if word)


NORMALISERS: dict[str, Callable[[str], str]] = {"basic": basic}


def train_tokenizer(texts: Iterable[str], special: Sequence[str] = (BLANK,), units: int = 0) -> "Tokenizer":
    """The special tokens (0: the blank of CTC), then the characters of `texts` in the order of code points.

    With `units` above 0, words begin with a mark of their own, and pairs are merged into subwords until there are so
    many tokens (byte-pair encoding, arXiv:1508.07909).
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if units:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=units, special_tokens=list(special), show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer
    vocabulary = [*special, *sorted(set().union(*texts))]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def byte_tokenizer() -> "Tokenizer":
    """One token per byte of UTF-8, which is its id."""
    from tokenizers import Tokenizer, decoders, models

    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def encode(tokenizer: "Tokenizer", text: str, name: str) -> list[int]:
    """Token ids of `text`.

    Raises:
        UserError: `name`, the utterance, has characters outside the vocabulary.
    """
    ids = tokenizer.encode(text).ids
    if tokenizer.decode(ids) != text:
        unknown = sorted(set(text) - {" "} - set(tokenizer.get_vocab()))
        raise UserError(f"{name} has characters outside the vocabulary: {' '.join(map(repr, unknown))}")
    return ids


@functools.lru_cache(maxsize=32)
def _filters(old: int, new: int) -> tuple[Float[Tensor, "taps phases"], int]:
    """Torchaudio's filter bank, several times side by side where it is narrow: a wider product is faster."""
    from torchaudio.transforms import Resample

    sinc = Resample(old, new)
    bank, repeats = sinc.kernel[:, 0].T, math.ceil(16 / new)
    wide = bank.new_zeros(len(bank) + old * (repeats - 1), new * repeats)
    for i in range(repeats):
        wide[i * old : i * old + len(bank), i * new : (i + 1) * new] = bank
    return wide, sinc.width


def resample(signal: Float[Tensor, " n"], old: int, new: int) -> Float[Tensor, " m"]:
    """`signal` with `new` samples where there were `old`, m = ceil(n·new/old), as torchaudio's `resample` does it.

    Its convolution prepares itself anew for every length, which takes most of its time; a matrix product does not.
    """
    # an odd rate (11,127 Hz) would need a filter bank of gigabytes; the nearest simple ratio is off by less than 1e-5
    ratio = Fraction(new, old).limit_denominator(1000)
    if ratio == 1:
        return signal
    filters, width = _filters(ratio.denominator, ratio.numerator)
    hop = ratio.denominator * filters.shape[1] // ratio.numerator
    padded = nn.functional.pad(signal, (width, width + hop))
    return (padded.unfold(0, len(filters), hop) @ filters).flatten()[: math.ceil(len(signal) * ratio)]


def _length_or_refusal(file: str | bytes, name: str, text: str, max_seconds: Seconds) -> Seconds | str:
    import soundfile

    try:
        header = soundfile.info(io.BytesIO(file) if isinstance(file, bytes) else file)
    except (soundfile.LibsndfileError, OSError) as error:
        return f"{name} cannot be decoded: {_reason(error)}"
    if not header.frames:
        return f"{name} holds no samples"
    if promised := _promised(file, header.frames):
        return _short(name, promised, header.frames)
    seconds = header.frames / header.samplerate
    if seconds > max_seconds:
        return f"{name} is {seconds:,.1f} s long, over the limit of {max_seconds:,.1f} s (data.max_seconds)"
    return seconds if text else f"{name} has no words in its text"


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).strip().rstrip(".")


def _promised(file: str | Path | bytes, held: int) -> int:
    """Frames that the header of a WAV promises, if they are more than the file holds; else 0.

    Decoders take what is there for all there is. Who writes into a pipe does not know the length and promises nearly
    2 or 4 GiB, which counts as none.
    """
    with io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb") as stream:
        head, frame = stream.read(12), 1
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return 0
        while len(chunk := stream.read(8)) == 8:
            size = int.from_bytes(chunk[4:], "little")
            if chunk[:4] == b"data":
                return size // frame if held < size // frame and size < PIPED else 0
            body = stream.read(size + size % 2)
            if chunk[:4] == b"fmt ":
                frame = max(1, int.from_bytes(body[12:14], "little"))
    return 0


def _short(name: str, promised: int, held: int) -> str:
    return f"{name} is cut short: its header promises {promised:,} frames and the file holds {held:,}"


def read(file: str | Path | bytes, name: str | None = None) -> Float[Tensor, " n"]:
    """A recording of any rate, length and number of channels, from a file or its bytes, as mono at 16 kHz.

    Raises:
        UserError: it cannot be decoded, is cut short, holds no samples, or values that are not finite; `name` is told.
    """
    import soundfile

    name = name or str(file)
    if not isinstance(file, bytes) and not Path(file).is_file():
        raise UserError(f"{name} is {'a folder' if Path(file).is_dir() else 'no file that exists'}")
    try:
        with soundfile.SoundFile(io.BytesIO(file) if isinstance(file, bytes) else str(file)) as source:
            samples, rate, promised = source.read(dtype="float32", always_2d=True), source.samplerate, source.frames
    except (soundfile.LibsndfileError, OSError) as error:
        raise UserError(f"{name} cannot be decoded: {_reason(error)}") from error
    if not len(samples):
        raise UserError(f"{name} holds no samples")
    if (promised := max(promised, _promised(file, len(samples)))) > len(samples):
        raise UserError(_short(name, promised, len(samples)))
    if not np.isfinite(samples).all():
        raise UserError(f"{name} holds samples that are not finite")
    return resample(torch.from_numpy(samples.mean(1)), rate, SAMPLE_RATE)


def choose_split(split: str, splits: Sequence[str]) -> str:
    """`split`, which has to be one of `splits`."""
    if split not in splits:
        raise UserError(f"there is no split {split!r}{nearest(split, splits)}")
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
        return Example(self.ids[index], torch.from_numpy(self.samples(index)).float() / 2**15, self.texts[index])

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
            log.warning("%d of %d recordings are left out; the first: %s", len(bad), len(found), bad[0])
        if len(bad) == len(found):
            raise UserError(f"none of {len(found)} recordings can be used{'; ' + bad[0] if bad else ''}")
        kept = [index for index, seconds in enumerate(found) if not isinstance(seconds, str)]
        columns = {"id": ids, "text": texts, "speaker": speakers, "seconds": found}
        super().__init__({name: [column[index] for index in kept] for name, column in columns.items()})
        self.skip_bad = skip_bad
        self._audio = audio.select(kept)
        self._decoded: dict[int, np.ndarray] = {}
        self._room = MEMORY

    def samples(self, index: int) -> Int16[np.ndarray, " n"]:
        found = self._decoded.get(index)
        if found is None:
            signal = read(_source(self._audio[index]), self.ids[index])
            # rounded also when there is no room, so that an item never depends on what was read before it
            found = (signal * 2**15).round().clamp(-(2**15), 2**15 - 1).to(torch.int16).numpy()
            if found.nbytes <= self._room:
                self._room -= found.nbytes
                self._decoded[index] = found
        return found


def _source(row: Mapping[str, Any]) -> str | bytes:
    return row["audio"]["bytes"] or row["audio"]["path"]
