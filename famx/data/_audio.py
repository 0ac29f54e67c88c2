"""Decoding and resampling of audio files."""

import functools
import io
import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from famx.notation import SAMPLE_RATE, Seconds, UserError

if TYPE_CHECKING:
    pass


PIPED = 2**31 - 2**16


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
    return (padded.unfold(0, len(filters), hop) @ filters).flatten()[
        : math.ceil(len(signal) * ratio)
    ]


def _length_or_refusal(
    file: str | bytes, name: str, text: str, max_seconds: Seconds
) -> Seconds | str:
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
    return (
        f"{name} is cut short: its header promises {promised:,} frames and the file holds {held:,}"
    )


def read_audio(file: str | Path | bytes, name: str | None = None) -> Float[Tensor, " n"]:
    """A recording of any rate, length and number of channels, from a file or its bytes, as mono at 16 kHz.

    Raises:
        UserError: it cannot be decoded, is cut short, holds no samples, or values that are not finite; `name` is told.
    """
    import soundfile

    name = name or str(file)
    if not isinstance(file, bytes) and not Path(file).is_file():
        raise UserError(f"{name} is {'a folder' if Path(file).is_dir() else 'no file that exists'}")
    try:
        with soundfile.SoundFile(
            io.BytesIO(file) if isinstance(file, bytes) else str(file)
        ) as source:
            samples, rate, promised = (
                source.read(dtype="float32", always_2d=True),
                source.samplerate,
                source.frames,
            )
    except (soundfile.LibsndfileError, OSError) as error:
        raise UserError(f"{name} cannot be decoded: {_reason(error)}") from error
    if not len(samples):
        raise UserError(f"{name} holds no samples")
    if (promised := max(promised, _promised(file, len(samples)))) > len(samples):
        raise UserError(_short(name, promised, len(samples)))
    if not np.isfinite(samples).all():
        raise UserError(f"{name} holds samples that are not finite")
    return resample(torch.from_numpy(samples.mean(1)), rate, SAMPLE_RATE)


def _source(row: Mapping[str, Any]) -> str | bytes:
    return row["audio"]["bytes"] or row["audio"]["path"]
