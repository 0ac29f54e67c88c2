"""Lengths and samples of audio files, decoded by FFmpeg (PyAV)."""

import contextlib
import io
import math
import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float32

from famx.data._headers import damaged_ogg_page, sample_bytes, states_mp3_length
from famx.notation import SAMPLE_RATE, Seconds, UserError

if TYPE_CHECKING:
    from av import AudioFrame
    from av.audio import AudioStream
    from av.container import InputContainer

# formats whose header states the length; that of MP3 and Ogg is the length of the first recording,
# of which such a file may hold several
STATED = (
    "aiff",
    "au",
    "caf",
    "flac",
    "matroska,webm",
    "mov,mp4,m4a,3gp,3g2,mj2",
    "nistsphere",
    "w64",
    "wav",
    "wv",
)
FIRST_STATED = ("mp3", "ogg")
UNSTATED = ("aac", "amr", "avr", "epaf", "iff", "ircam", "pvf", "sds", "voc")
# All of them consist of one file. Others, such as playlists, would make FFmpeg open further ones.
FORMATS = ",".join(STATED + FIRST_STATED + UNSTATED)
# By default FFmpeg decodes a megabyte of a WAV file to see whether it is DTS.
OPTIONS = {"format_whitelist": FORMATS, "probesize": "4096"}
# formats in which FFmpeg finds a position exactly; others are decoded from their beginning
SEEKABLE = ("flac", "wav")
# codecs that decode exactly as many frames as they were given, or fill up the last block
EXACT_CODECS = ("pcm_", "adpcm_", "flac", "g726", "gsm", "wavpack")
# frames by which other decoders differ from headers: delay and padding of the first and last block
BLOCK_FRAMES = 4096
# frames of a block of MP3; most frames of delay and padding
MP3_BLOCK = 1152
MP3_DELAY = 2 * MP3_BLOCK
MIN_RATE = 100
MAX_RATE = 1_000_000
# a duration that FFmpeg does not know
UNKNOWN = 2**62
# memory for a frame: its sample, and copies of it while it is resampled
BYTES_PER_FRAME = 16
# channels cancel if their mean has less than this part of their power (40 dB)
CANCELLED = 1e-4


class Length(NamedTuple):
    """The length of a recording: frames (samples of one channel), and frames per second."""

    frames: int
    rate: int

    @property
    def seconds(self) -> Seconds:
        return self.frames / self.rate


class Segment(NamedTuple):
    """Consecutive samples of one rate, the mean of all channels."""

    samples: Float32[np.ndarray, " n"]
    rate: int


def measure(file: str | Path | bytes, name: str) -> Length:
    """Returns the length of a recording, from its header where that states it.

    Raises:
        UserError: the file cannot be read, or has no samples or fewer than its header states.
    """
    with _open(file, name) as (source, container, stream):
        rate = stream.sample_rate
        if not MIN_RATE <= rate <= MAX_RATE:
            raise UserError(
                f"{name} has a sample rate of {rate:,} Hz, outside {MIN_RATE:,} to {MAX_RATE:,} Hz"
            )
        stated = _stated_frames(stream)
        _refuse_missing_samples(source, name, stated if _is_pcm(stream) else 0)
        kind = container.format.name
        if stated and kind in STATED:
            return Length(stated, rate)
        # otherwise FFmpeg estimates the length
        if kind in UNSTATED or (kind == "mp3" and not states_mp3_length(source)):
            stated = 0
    # all packets, which are not decoded
    scanned = 0
    with _open(file, name) as (_, container, stream):
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise UserError(f"{name} is truncated: its last packet ends early")
            duration = packet.duration or 0
            if duration >= 2**31:  # FFmpeg shortens the last packet of Ogg below 0, in 32 bits
                duration -= 2**32
            scanned += round(duration * (stream.time_base or 0) * rate)
    if not scanned:
        raise UserError(f"{name} holds no samples")
    if stated > scanned + (MP3_BLOCK if kind == "mp3" else BLOCK_FRAMES):
        raise _truncated(name, stated, scanned)
    # the header is exact if it states all of the file
    return Length(stated if stated > scanned - MP3_DELAY else scanned, rate)


def decode(file: str | Path | bytes, name: str) -> list[Segment]:
    """Decodes a recording to the mean of its channels, in segments of one rate.

    Raises:
        UserError: it cannot be decoded, is truncated, too large for the memory, or has channels
            that cancel each other.
    """
    length = measure(file, name)
    _check_memory(length, name)
    mixer = _Mixer()
    with _open(file, name) as (_, container, stream):
        # one thread, since data loaders fork
        stream.codec_context.thread_count = 1
        codec = stream.codec_context.name
        # the last block of other codecs may be longer
        longest = length.seconds + (0 if codec == "flac" else BLOCK_FRAMES / length.rate)
        for packet in container.demux(stream):
            for frame in packet.decode():
                mixer.add(frame)
            if mixer.seconds > longest + 1e-6:
                raise UserError(
                    f"{name} is damaged: its header states {length.frames:,} frames and the file "
                    "holds more"
                )
    # decoders accept files that are empty or truncated
    mixer.check(name)
    n_frames = round(mixer.seconds * length.rate)
    if length.frames > n_frames + (0 if codec.startswith(EXACT_CODECS) else BLOCK_FRAMES):
        raise _truncated(name, length.frames, n_frames)
    return mixer.segments()


def decode_part(
    file: str | Path | bytes, name: str, start: Seconds, seconds: Seconds | None
) -> list[Segment]:
    """Decodes a part of a recording, as `decode` decodes all of it.

    Args:
        start: where the part begins.
        seconds: its duration, None for all that follows. It is shorter where the file ends.

    Raises:
        UserError: the file ends before `start`, or `decode` would refuse it.
    """
    seconds_after(start, measure(file, name).seconds, name)
    stop = math.inf if seconds is None else start + seconds
    mixer = _Mixer()
    with _open(file, name) as (_, container, stream):
        stream.codec_context.thread_count = 1
        can_seek = container.format.name in SEEKABLE
        if can_seek and stream.time_base:
            container.seek(math.floor(start / stream.time_base), stream=stream)
        position = 0.0
        for frame in container.decode(stream):
            if can_seek and frame.time is not None:
                position = frame.time
            if position >= stop:
                break
            end = position + frame.samples / frame.sample_rate
            if end > start:
                first = max(0, round((start - position) * frame.sample_rate))
                last = round((min(stop, end) - position) * frame.sample_rate)
                mixer.add(frame, first, last)
            position = end
    mixer.check(name)
    return mixer.segments()


def seconds_after(start: Seconds, total: Seconds, name: str) -> Seconds:
    """Returns the duration that a recording of `total` seconds has from `start` on.

    Raises:
        UserError: it ends before.
    """
    if start >= total:
        raise UserError(f"{name} begins at {start:,.2f} s in a file of {total:,.2f} s")
    return total - start


class _Mixer:
    """Means of the channels of decoded frames.

    Attributes:
        pieces: the means, each with its rate.
        seconds: their duration.
        power, mono_power: energies of the channels (their average) and of the means.
    """

    def __init__(self) -> None:
        self.pieces: list[Segment] = []
        self.seconds: Seconds = 0.0
        self.power = 0.0
        self.mono_power = 0.0

    def add(self, frame: "AudioFrame", first: int = 0, last: int | None = None) -> None:
        """Adds a decoded frame of any sample format, or its samples from `first` to `last`."""
        samples = frame.to_ndarray()
        if not frame.format.is_planar:  # channels alternate
            samples = samples.reshape(-1, frame.layout.nb_channels).T
        channels = samples[:, first:last].astype(np.float64)
        if not channels.size:
            return
        # integers to [-1, 1); those of 8 bits are unsigned
        if samples.dtype.kind in "iu":
            channels /= 2.0 ** (8 * samples.itemsize - 1)
        if samples.dtype.kind == "u":
            channels -= 1
        # samples that are not finite are refused by the caller
        with np.errstate(over="ignore", invalid="ignore"):
            mono = channels.mean(0)
            self.pieces.append(Segment(mono.astype(np.float32), frame.sample_rate))
            if len(channels) > 1:
                self.power += float(channels.var(1).mean() * len(mono))
                self.mono_power += float(mono.var() * len(mono))
        self.seconds += len(mono) / frame.sample_rate

    def check(self, name: str) -> None:
        """Raises a UserError if there are no samples, or the channels cancel each other."""
        if not self.seconds:
            raise UserError(f"{name} holds no samples")
        if self.mono_power < CANCELLED * self.power:
            raise UserError(
                f"{name} has channels of opposite phase, whose mean is silent; invert one of them "
                "or keep one alone"
            )

    def segments(self) -> list[Segment]:
        """Returns the means, joined where the rate is the same."""
        segments = []
        for rate, group in groupby(self.pieces, lambda piece: piece.rate):
            segments.append(Segment(np.concatenate([piece.samples for piece in group]), rate))
        return segments


@contextlib.contextmanager
def _open(
    file: str | Path | bytes, name: str
) -> "Iterator[tuple[io.BufferedIOBase, InputContainer, AudioStream]]":
    """Opens the first audio stream of a file.

    Yields:
        The bytes of the file, the container, and the stream in it.

    Raises:
        UserError: it cannot be decoded, here or inside the `with` block.
    """
    import av  # imported late: most commands decode nothing

    try:
        # opened by Python, since FFmpeg would treat some names as addresses
        with (
            io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb") as source,
            av.open(source, "r", options=OPTIONS, metadata_errors="ignore") as container,
        ):
            if not container.streams.audio:
                raise UserError(f"{name} has no audio")
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                raise UserError(f"{name} cannot be decoded: its codec is not known")
            yield source, container, stream
    except UserError:
        raise
    except av.ArgumentError as error:
        formats = FORMATS.replace(",", ", ")
        raise UserError(
            f"{name} cannot be decoded: its header is damaged or its format is none of {formats}"
        ) from error
    except (av.FFmpegError, OSError, ValueError, ArithmeticError, MemoryError) as error:
        # FFmpeg's errors, without its numbers and names of functions
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{name} cannot be decoded: {reason}") from error


def _stated_frames(stream: "AudioStream") -> int:
    """Returns the number of frames that a header states, 0 if it does not."""
    if not stream.duration or stream.duration > UNKNOWN or not stream.time_base:
        return 0
    return round(stream.duration * stream.time_base * stream.sample_rate)


def _is_pcm(stream: "AudioStream") -> bool:
    return stream.codec_context.name.startswith("pcm_")


def _refuse_missing_samples(source: io.BufferedIOBase, name: str, actual_frames: int) -> None:
    """Raises a UserError if the file lacks samples that its headers state.

    Args:
        actual_frames: frames in the file, if they are known.
    """
    stated_bytes, actual_bytes = sample_bytes(source)
    page = damaged_ogg_page(source)
    if page is not None:
        raise UserError(f"{name} is damaged or ends early, in its page at byte {page:,}")
    if stated_bytes <= actual_bytes:
        return
    if actual_frames:
        raise _truncated(name, round(actual_frames * stated_bytes / actual_bytes), actual_frames)
    raise UserError(
        f"{name} is truncated: its header states {stated_bytes:,} bytes of samples and the file "
        f"holds {actual_bytes:,}"
    )


def _check_memory(length: Length, name: str) -> None:
    """Raises a UserError if the memory of the machine is too small for a recording."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = length.frames * BYTES_PER_FRAME * max(1.0, SAMPLE_RATE / length.rate)
    if needed > memory:
        raise UserError(
            f"{name} is {length.seconds / 3600:,.1f} hours long, which needs "
            f"{needed / 1e9:,.1f} GB of memory, and the machine has {memory / 1e9:,.1f} GB"
        )


def _truncated(name: str, stated_frames: int, n_frames: int) -> UserError:
    return UserError(
        f"{name} is truncated: its header states {stated_frames:,} frames "
        f"and the file holds {n_frames:,}"
    )
