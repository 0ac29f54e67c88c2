"""A tiny corpus of speech for the contracts and tests of data sets."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from jaxtyping import Float64

from famx.data._grammar import RULES
from famx.notation import SAMPLE_RATE, Hertz, Seconds

SPEAKERS = {"train": "anna", "dev": "bob", "test": "carl"}


class Recording(NamedTuple):
    """An audio file (its name in the folder), its text and its speaker."""

    file: str
    text: str
    speaker: str


def tone(
    seconds: Seconds, hertz: Hertz = 440.0, rate: int = SAMPLE_RATE
) -> Float64[np.ndarray, " n"]:
    """Returns a tone that swells and fades, with an amplitude of 0.5."""
    time = np.arange(round(seconds * rate)) / rate
    return 0.5 * np.sin(2 * np.pi * hertz * time) * np.hanning(len(time))


def write_corpus(
    folder: Path, suffix: str = ".wav", n_recordings: int = 12
) -> dict[str, list[Recording]]:
    """Writes recordings of one speaker for each split, and their manifests; a word is a tone.

    Args:
        folder: folder to write into, created if it is missing.
        suffix: file format of the recordings.
        n_recordings: number of recordings of each split.

    Returns:
        The recordings of each split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recordings: dict[str, list[Recording]] = {}
    for split, speaker in SPEAKERS.items():
        recordings[split] = []
        for index in range(n_recordings):
            file = f"{speaker}{index}{suffix}"
            word = RULES["digit"][index % 10]
            signal = tone(0.3 + 0.05 * (index % 7), 300.0 + 50.0 * index)
            soundfile.write(folder / file, signal, SAMPLE_RATE)
            recordings[split].append(Recording(file, word, speaker))
        lines = ["\t".join(recording) for recording in recordings[split]]
        (folder / f"{split}.tsv").write_text("\n".join(lines), encoding="utf-8")
    return recordings
