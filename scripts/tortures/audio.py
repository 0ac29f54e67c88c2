"""Mutated recordings of eight formats: scripts/torture audio [N] [SEED] (default: 20,000 and 0).

Each must be read with its length or be refused in a sentence, within a second and within four times
its size + 64 MB of memory. Status 1 if one is not.
"""

import collections
import io
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch

from famx.data._audio import read_audio, resample
from famx.notation import SAMPLE_RATE, UserError

# format and codec of the recordings
FORMATS = (
    ("WAV", "PCM_16"),
    ("WAV", "IMA_ADPCM"),
    ("FLAC", "PCM_16"),
    ("MP3", "MPEG_LAYER_III"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
)
SECONDS = 1.5
# samples by which equal lengths may differ: the delay and padding of MP3
TOLERANCE = 2304
MEMORY_PER_BYTE = 4
MEMORY = 64 * 2**20
MAX_SECONDS = 1.0
HEADER_BYTES = 64
# what must not happen
FAULTS = ("traceback", "slow", "memory")


class Outcome(NamedTuple):
    """The outcome of a mutant: `read`, `refused`, `other length` or one of `FAULTS`."""

    kind: str
    detail: str


def recordings() -> dict[str, bytes]:
    """Returns a recording of a warbling tone in each format."""
    time_axis = np.arange(round(SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    rng = np.random.default_rng(0)
    signal = 0.4 * np.sin(2 * np.pi * (300 + 100 * time_axis) * time_axis)
    signal += 0.01 * rng.standard_normal(len(signal))
    files = {}
    for kind, codec in FORMATS:
        stream = io.BytesIO()
        soundfile.write(stream, signal, SAMPLE_RATE, format=kind, subtype=codec)
        files[f"{kind} {codec}"] = stream.getvalue()
    return files


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Damages a file in one of six ways, half of the time in its header."""
    data = bytearray(content)
    in_header = rng.random() < 0.5
    position = int(rng.integers(HEADER_BYTES if in_header else len(data)))
    size = int(rng.integers(1, 5 if in_header else 500))
    match rng.integers(6):
        case 0:  # a few bits
            for offset in rng.integers(size, size=4):
                data[min(position + int(offset), len(data) - 1)] ^= 1 << int(rng.integers(8))
        case 1:  # random bytes
            data[position : position + size] = rng.bytes(size)
        case 2:  # extreme numbers
            data[position : position + 4] = [b"\0\0\0\0", b"\xff\xff\xff\xff"][rng.integers(2)]
        case 3:  # the end is missing
            del data[max(1, position) :]
        case 4:  # a part is missing
            del data[position : position + size]
        case 5:  # a part occurs twice
            data[position:position] = data[position : position + size]
    return bytes(data)


def mutants(n_mutants: int, seed: int) -> Iterator[tuple[str, bytes, int]]:
    """Yields the format of each mutant, its content, and the number of samples before."""
    files = recordings()
    n_samples = {name: len(read_audio(content)) for name, content in files.items()}
    for index in range(n_mutants):
        name = list(files)[index % len(files)]
        content = mutate(files[name], np.random.default_rng([seed, index]))
        yield name, content, n_samples[name]


def try_mutant(content: bytes, n_samples: int) -> Outcome:
    """Reads a mutant."""
    _reset_peak_memory()
    before = _peak_memory()
    started = time.perf_counter()
    outcome = Outcome("read", "")
    try:
        n_read = len(read_audio(content, "mutant"))
        if abs(n_read - n_samples) > TOLERANCE:
            outcome = Outcome("other length", f"{n_read} samples of {n_samples}")
    except UserError as error:
        outcome = Outcome("refused", str(error))
    except Exception:
        outcome = Outcome("traceback", traceback.format_exc())
    # limits
    elapsed = time.perf_counter() - started
    if elapsed > MAX_SECONDS:
        return Outcome("slow", f"{elapsed:.1f} s: {outcome}")
    extra = _peak_memory() - before
    if extra > MEMORY_PER_BYTE * len(content) + MEMORY:
        return Outcome("memory", f"{extra / 1e6:,.0f} MB: {outcome}")
    return outcome


def main(words: Sequence[str]) -> int:
    """Prints the counts of outcomes for each format, and the first example of each fault."""
    n_mutants, seed = [*map(int, words), *(20_000, 0)[len(words) :]]
    # the first recording of another rate imports torchaudio, and lets torch allocate its buffers
    resample(torch.zeros(24_000), 4_083, SAMPLE_RATE)
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    examples: dict[str, str] = {}
    for index, (name, content, n_samples) in enumerate(mutants(n_mutants, seed)):
        outcome = try_mutant(content, n_samples)
        counts[name][outcome.kind] += 1
        if outcome.kind in FAULTS:
            examples.setdefault(outcome.kind, f"mutant {index}, {name}: {outcome.detail}")
    total = sum(counts.values(), collections.Counter())
    for name, counter in [*counts.items(), ("all", total)]:
        print(f"{name:22}" + "  ".join(f"{kind} {n:,}" for kind, n in sorted(counter.items())))
    for kind, example in examples.items():
        print(f"first {kind}: {example}")
    return int(any(total[kind] for kind in FAULTS))


def _reset_peak_memory() -> None:
    """Sets the recorded peak of this process's memory to its memory of now (Linux alone)."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> int:
    """Returns the peak of this process's memory in bytes, 0 where it is not known."""
    if sys.platform != "linux":
        return 0
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0
