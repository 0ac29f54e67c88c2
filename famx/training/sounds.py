"""Folders of noise and of impulse responses of rooms, with which recordings are augmented."""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from famx.data._audio_table import AudioFiles
from famx.data._fingerprint import digest, sample_digest
from famx.data._paths import existing_path, typed_path
from famx.data._recordings import Recordings
from famx.notation import UserError
from famx.training.loader_config import LoaderConfig


class SoundFolder:
    """All recordings in a folder and its subfolders, in the order of their names.

    The constructor reads their headers; files that are no recordings are left out with a warning.
    A recording is decoded when it is first needed, as speech is: 16 kHz, the mean of the channels,
    a mean of 0.

    Args:
        option: option that names the folder, for messages.
        folder: the folder.
        n_bytes: memory for decoded recordings, which forked processes share.

    Raises:
        UserError: there is no such folder, or no recording in it.
    """

    def __init__(self, option: str, folder: str, n_bytes: int) -> None:
        self._label = f"{option}={folder}"
        root = existing_path(typed_path(folder))
        if not root.is_dir():
            problem = "is a file" if root.exists() else "does not exist"
            raise UserError(f"{self._label} {problem}, expected a folder of recordings")
        # names in the folder, which do not depend on where it is
        files = [path for path in root.rglob("[!.]*") if path.is_file()]
        self._paths = {str(path.relative_to(root)): str(path) for path in sorted(files)}
        if not files:
            raise UserError(f"{self._label} is a folder without files, expected recordings")
        paths = list(self._paths.values())
        try:
            self._recordings = Recordings(
                AudioFiles(paths),
                ids=paths,
                texts=paths,  # a recording of speech must have a text; none of these is read
                speakers=[""] * len(paths),
                skip_bad=True,
                max_seconds=math.inf,
                normaliser="none",
            )
        except UserError as error:
            raise UserError(f"{self._label}: {error}") from error
        self._recordings.use_cache(n_bytes)

    def __len__(self) -> int:
        return len(self._recordings)

    def __getitem__(self, index: int) -> Float[Tensor, " n"]:
        """Returns the signal of a recording, in [-1, 1).

        Raises:
            UserError: it cannot be decoded, or is silent.
        """
        try:
            samples = self._recordings.samples(index)
        except UserError as error:
            raise UserError(f"{self._label}: {error}; remove it from the folder") from error
        return torch.from_numpy(samples).float() / 2**15

    def fingerprint(self) -> str:
        """Returns a digest of the names of the files and of their contents."""
        return digest(f"{name}\t{sample_digest(path)}" for name, path in self._paths.items())


class Sounds(NamedTuple):
    """The folders that recordings are augmented with; None for no such folder."""

    noise: SoundFolder | None = None
    rooms: SoundFolder | None = None

    def fingerprint(self) -> dict[str, str]:
        """Returns a digest of each folder that there is, by the name of its option."""
        folders = self._asdict().items()
        return {name: folder.fingerprint() for name, folder in folders if folder}


NO_SOUNDS = Sounds()


def sounds_of(config: LoaderConfig) -> Sounds:
    """Loads the folders that options of the loader name.

    Raises:
        UserError: there is no such folder, or no recording in it.
    """
    folders = {}
    for option in LoaderConfig.path_options:
        folder = getattr(config, option)
        if folder:
            folders[option] = SoundFolder(f"loader.{option}", folder, config.cache_bytes())
    return Sounds(**folders)


def add_noise(
    signal: Float[Tensor, " n"],
    noise: Float[Tensor, " m"],
    snr: float,
    rng: np.random.Generator,
) -> Float[Tensor, " n"]:
    """Adds a random part of a noise, or all of it again and again if it is shorter.

    x + v·rms(x)/rms(v)·10^(-snr/20) for the part v; a part that is silent adds nothing.

    Args:
        snr: signal-to-noise ratio in dB.
        rng: generator that samples where the part begins.
    """
    n_samples = len(signal)
    if len(noise) < n_samples:
        noise = noise.repeat(math.ceil(n_samples / len(noise)))[:n_samples]
    start = int(rng.integers(len(noise) - n_samples + 1))
    part = noise[start : start + n_samples]
    noise_level = rms(part)
    if noise_level == 0:
        return signal
    return signal + part * (rms(signal) / noise_level * 10 ** (-snr / 20))


def reverberate(signal: Float[Tensor, " n"], response: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
    """Convolves a signal with the impulse response of a room; length and level stay.

    y[t] = g·Σ_s h[s]·x[t + d - s], where d is the position of the direct path, the largest |h[d]|,
    so that the words stay where they are; g makes rms(y) = rms(x).
    """
    # imported late, since most runs have no rooms
    from scipy.signal import fftconvolve

    direct_path = int(response.abs().argmax())
    convolved = torch.from_numpy(fftconvolve(signal.numpy(), response.numpy()))
    convolved = convolved[direct_path : direct_path + len(signal)]
    level = rms(convolved)
    # the response removes all of some signals, such as a constant
    return convolved * (rms(signal) / level) if level else signal


def rms(signal: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Returns the root of the mean square of a signal, its level."""
    return signal.square().mean().sqrt()
