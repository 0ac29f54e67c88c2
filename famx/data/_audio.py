"""Decoding and resampling of audio files."""

import functools
import io
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile
import torch
from jaxtyping import Float
from torch import Tensor, nn

from famx.notation import SAMPLE_RATE, Seconds, UserError

# A program that writes a WAV file into a pipe does not know its length, so the header states nearly
# 2 or 4 GiB.
STREAMED_BYTES = 2**31 - 2**16


def read_audio(file: str | Path | bytes, name: str | None = None) -> Float[Tensor, " n"]:
    """Decodes a recording of any sample rate, length and number of channels to mono at 16 kHz.

    Args:
        file: path of the file, or its bytes.
        name: name of the recording in errors; by default its path.

    Raises:
        UserError: it cannot be decoded, is truncated, or has no samples or non-finite ones.
    """
    name = name or str(file)
    if not isinstance(file, bytes) and not Path(file).is_file():
        raise UserError(f"{name} {'is a folder' if Path(file).is_dir() else 'does not exist'}")
    # samples of all channels, at the rate of the file
    try:
        with soundfile.SoundFile(_source(file)) as decoder:
            samples = decoder.read(dtype="float32", always_2d=True)
            rate = decoder.samplerate
            stated_frames = decoder.frames
    except (soundfile.LibsndfileError, OSError) as error:
        raise UserError(f"{name} cannot be decoded: {_reason(error)}") from error
    # decoders accept files that are empty or truncated
    if not len(samples):
        raise UserError(f"{name} holds no samples")
    _refuse_truncated(name, max(stated_frames, _frames_in_wav_header(file)), len(samples))
    if not np.isfinite(samples).all():
        raise UserError(f"{name} holds samples that are not finite")
    return resample(torch.from_numpy(samples.mean(1)), rate, SAMPLE_RATE)


def read_duration(file: str | Path | bytes, name: str) -> Seconds:
    """Reads the duration of a recording from its header.

    Raises:
        UserError: the header cannot be read, or states no samples or more than the file holds.
    """
    try:
        header = soundfile.info(_source(file))
    except (soundfile.LibsndfileError, OSError) as error:
        raise UserError(f"{name} cannot be decoded: {_reason(error)}") from error
    if not header.frames:
        raise UserError(f"{name} holds no samples")
    _refuse_truncated(name, _frames_in_wav_header(file), header.frames)
    return header.frames / header.samplerate


def resample(signal: Float[Tensor, " n"], rate: int, new_rate: int) -> Float[Tensor, " m"]:
    """Resamples a signal to m = ceil(n·new_rate/rate) samples, as torchaudio's `resample` does.

    Torchaudio sets up its convolution anew for every length, which takes most of its time; the
    matrix product here needs no such setup.
    """
    # an odd rate such as 11,127 Hz would need a filter bank of gigabytes; the nearest ratio of
    # small numbers differs by less than 1e-5
    ratio = Fraction(new_rate, rate).limit_denominator(1000)
    if ratio == 1:
        return signal
    filters, padding = _filter_bank(ratio.denominator, ratio.numerator)
    # input samples from one row of the product to the next
    hop = ratio.denominator * filters.shape[1] // ratio.numerator
    padded = nn.functional.pad(signal, (padding, padding + hop))
    resampled = (padded.unfold(0, len(filters), hop) @ filters).flatten()
    return resampled[: math.ceil(len(signal) * ratio)]


@functools.lru_cache(maxsize=32)
def _filter_bank(rate: int, new_rate: int) -> tuple[Float[Tensor, "taps phases"], int]:
    """Returns torchaudio's filter bank and its padding.

    A narrow bank is repeated along the diagonal, since a wider matrix product is faster.
    """
    # imported late: it takes seconds, and most commands resample nothing
    try:
        from torchaudio.transforms import Resample
    # OSError: a library of torch for another device is missing
    except (ImportError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"torchaudio cannot be imported with torch {torch.__version__} ({reason}): install "
            "both for the same device, without a GPU by pip install torch torchaudio --index-url "
            "https://download.pytorch.org/whl/cpu"
        ) from error

    resampler = Resample(rate, new_rate)
    bank = resampler.kernel[:, 0].T
    repeats = math.ceil(16 / new_rate)
    n_taps = len(bank)
    filters = bank.new_zeros(n_taps + rate * (repeats - 1), new_rate * repeats)
    for i in range(repeats):
        rows = slice(i * rate, i * rate + n_taps)
        columns = slice(i * new_rate, (i + 1) * new_rate)
        filters[rows, columns] = bank
    return filters, resampler.width


def _source(file: str | Path | bytes) -> str | io.BytesIO:
    """Returns what soundfile can open: a path, or bytes as a stream."""
    return io.BytesIO(file) if isinstance(file, bytes) else str(file)


def _reason(error: Exception) -> str:
    """Returns libsndfile's message without its prefix and full stop."""
    message = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    return message.strip().rstrip(".")


def _refuse_truncated(name: str, stated_frames: int, n_frames: int) -> None:
    """Raises a UserError for a file with fewer frames than its header states.

    Decoders would accept the beginning of the recording.
    """
    if stated_frames > n_frames:
        raise UserError(
            f"{name} is truncated: its header states {stated_frames:,} frames "
            f"and the file holds {n_frames:,}"
        )


def _frames_in_wav_header(file: str | Path | bytes) -> int:
    """Returns the number of frames that the header of a WAV file states.

    It is 0 for other formats, and if the length was unknown when the header was written.
    """
    with io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb") as stream:
        start = stream.read(12)
        if start[:4] != b"RIFF" or start[8:] != b"WAVE":
            return 0
        bytes_per_frame = 1
        # a chunk is its name, the size of its body, and its body, padded to an even size
        while len(chunk := stream.read(8)) == 8:
            size = int.from_bytes(chunk[4:], "little")
            if chunk[:4] == b"data":
                return size // bytes_per_frame if size < STREAMED_BYTES else 0
            body = stream.read(size + size % 2)
            if chunk[:4] == b"fmt ":
                bytes_per_frame = max(1, int.from_bytes(body[12:14], "little"))
    return 0
