"""Recordings of any format as mono signals at 16 kHz with a common level."""

import functools
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from famx.data._decoding import decode, decode_part, measure
from famx.nn.torchaudio import import_torchaudio
from famx.notation import SAMPLE_RATE, Seconds, UserError


def read_audio(
    file: str | Path | bytes,
    name: str | None = None,
    start: Seconds | None = None,
    seconds: Seconds | None = None,
) -> Float[Tensor, " n"]:
    """Reads a recording, or a part of one, as training, evaluation and transcription use it.

    Any sample rate, length, number of channels, level and offset become 16 kHz, the mean of the
    channels, a mean of 0, and a peak between 1/4 and 1/2 (before resampling) by a power of two, in
    steps of 16 bits.

    Args:
        file: path of the file, or its bytes.
        name: name of the recording in errors; by default its path.
        start: where the part begins; None for a complete recording.
        seconds: duration of the part, None for all that follows; it is shorter where the file ends.

    Raises:
        UserError: it cannot be decoded, is truncated, or has no samples or non-finite ones.
    """
    name = name or ("the recording" if isinstance(file, bytes) else str(file))
    _check_exists(file, name)
    segments = decode(file, name) if start is None else decode_part(file, name, start, seconds)
    if not all(np.isfinite(samples).all() for samples, _ in segments):
        raise UserError(f"{name} holds samples that are not finite")
    # levels before means, since sums of the largest numbers overflow
    _scale([samples for samples, _ in segments])
    _remove_mean([samples for samples, _ in segments])
    _scale([samples for samples, _ in segments])
    resampled = [resample(torch.from_numpy(part), rate, SAMPLE_RATE) for part, rate in segments]
    return (torch.cat(resampled) * 2**15).round() / 2**15


def read_duration(file: str | Path | bytes, name: str) -> Seconds:
    """Reads the duration of a recording, from its header where that states it.

    Raises:
        UserError: the file cannot be read, or has no samples or fewer than its header states.
    """
    _check_exists(file, name)
    return measure(file, name).seconds


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
    # imported late, since most commands resample nothing
    resampler = import_torchaudio("transforms").Resample(rate, new_rate)
    bank = resampler.kernel[:, 0].T
    repeats = math.ceil(16 / new_rate)
    n_taps = len(bank)
    filters = bank.new_zeros(n_taps + rate * (repeats - 1), new_rate * repeats)
    for i in range(repeats):
        rows = slice(i * rate, i * rate + n_taps)
        columns = slice(i * new_rate, (i + 1) * new_rate)
        filters[rows, columns] = bank
    return filters, resampler.width


def _check_exists(file: str | Path | bytes, name: str) -> None:
    """Raises a UserError if there is no such file."""
    if not isinstance(file, bytes) and not Path(file).is_file():
        raise UserError(f"{name} {'is a folder' if Path(file).is_dir() else 'does not exist'}")


def _scale(parts: list[Float32[np.ndarray, " _"]]) -> None:
    """Multiplies a signal by the power of two that brings its peak into [1/4, 1/2)."""
    peak = max(float(np.abs(part).max()) for part in parts)
    exponent = math.frexp(peak)[1]
    for part in parts:
        np.ldexp(part, -1 - exponent, out=part)


def _remove_mean(parts: list[Float32[np.ndarray, " _"]]) -> None:
    """Subtracts the mean of a signal; a constant becomes exactly 0."""
    n_samples = sum(len(part) for part in parts)
    mean = sum(float(part.sum(dtype=np.float64)) for part in parts) / n_samples
    if all((part == parts[0][0]).all() for part in parts):
        mean = float(parts[0][0])
    for part in parts:
        part -= np.float32(mean)
