"""Augmentation of recordings: their speed, the room, noise, and spans to blank."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from famx.data._audio import resample
from famx.notation import SAMPLE_RATE
from famx.seeding import numpy_rng
from famx.training.loader_config import NOISE_SNR, LoaderConfig, Masks
from famx.training.sounds import NO_SOUNDS, SoundFolder, Sounds, add_noise, reverberate, rms

MASK_STEP = 8  # the number of masks per second is rounded up to a multiple of it
Learnable = Callable[[Int[Tensor, " items"], Sequence[str]], list[bool]]
"""Whether each text can be learned from a recording of so many samples."""


@dataclass
class Augmentation:
    """Changes to the examples of one epoch, by their index.

    Args:
        speed: factor of speed.
        snr: signal-to-noise ratio in dB, infinite for no noise.
        noise_seeds: seed of white noise, or of where a recorded noise begins.
        spans: spans to blank, as in `Batch`.
        other_spans: spans of the second view, None without one.
        noise: index of the noise in its folder, -1 for none; None without a folder.
        room: index of the impulse response in its folder, -1 for none; None without a folder.
        sounds: the folders.
    """

    speed: Float[np.ndarray, " items"]
    snr: Float[np.ndarray, " items"]
    noise_seeds: Int[np.ndarray, " items"]
    spans: Float[np.ndarray, "items masks 4"]
    other_spans: Float[np.ndarray, "items masks 4"] | None = None
    noise: Int[np.ndarray, " items"] | None = None
    room: Int[np.ndarray, " items"] | None = None
    sounds: Sounds = NO_SOUNDS

    def apply(self, signal: Float[Tensor, " n"], index: int) -> Float[Tensor, " m"]:
        """Changes the speed of an example, places it in its room, then adds noise.

        Raises:
            UserError: a recording of noise or of a room cannot be decoded, or is silent.
        """
        # faster by 5 % = fewer samples at the same rate
        signal = resample(signal, round(100 * self.speed[index]), 100)
        if self.sounds.rooms and self.room is not None and self.room[index] >= 0:
            signal = reverberate(signal, self.sounds.rooms[int(self.room[index])])
        if np.isinf(self.snr[index]):
            return signal
        # noise whose root mean square is `snr` dB below that of the signal
        rng = np.random.default_rng(self.noise_seeds[index])
        if self.sounds.noise and self.noise is not None:
            noise = self.sounds.noise[int(self.noise[index])]
            return add_noise(signal, noise, float(self.snr[index]), rng)
        noise = torch.from_numpy(rng.standard_normal(len(signal), np.float32))
        return signal + noise * rms(signal) * 10 ** (-self.snr[index] / 20)


def sample_augmentation(
    config: LoaderConfig,
    seed: int,
    epoch: int,
    seconds: Sequence[float],
    two_views: bool = False,
    sounds: Sounds = NO_SOUNDS,
    masks: Masks | None = None,
) -> Augmentation:
    """Samples the augmentation of an epoch, as a function of the arguments alone.

    Args:
        seconds: durations of the recordings.
        two_views: whether to sample the spans of a second view.
        sounds: the folders of noise and of rooms.
        masks: sizes of the spans to blank; None for those of a corpus of these recordings.
    """
    n_items = len(seconds)
    durations = np.asarray(seconds, np.float64)
    if masks is None:
        masks = config.masks(float(durations.sum()), two_views)
    augmentation = Augmentation(
        speed=numpy_rng(seed, "speed", epoch).choice(config.speed, n_items),
        snr=numpy_rng(seed, "snr", epoch).choice(_ratios(config, sounds), n_items),
        noise_seeds=numpy_rng(seed, "noise", epoch).integers(2**63, size=n_items),
        spans=_sample_spans(masks, durations, seed, epoch, 0),
        other_spans=_sample_spans(masks, durations, seed, epoch, 1) if two_views else None,
        sounds=sounds,
    )
    if sounds.rooms:
        rng = numpy_rng(seed, "room", epoch)
        augmentation.room = _sample_files(sounds.rooms, config.room_probability, n_items, rng)
    if sounds.noise:
        rng = numpy_rng(seed, "recorded noise", epoch)
        augmentation.noise = _sample_files(sounds.noise, config.noise_probability, n_items, rng)
        augmentation.snr[augmentation.noise < 0] = np.inf
    return augmentation


def _ratios(config: LoaderConfig, sounds: Sounds) -> Sequence[float]:
    """Returns the signal-to-noise ratios that are sampled."""
    return config.snr or (NOISE_SNR if sounds.noise else (np.inf,))


def _sample_files(
    folder: SoundFolder, probability: float, n_items: int, rng: np.random.Generator
) -> Int[np.ndarray, " items"]:
    """Samples a file of a folder for each item, -1 for none."""
    files = rng.integers(len(folder), size=n_items)
    return np.where(rng.random(n_items) < probability, files, -1)


def _sample_spans(
    masks: Masks, seconds: Float[np.ndarray, " items"], seed: int, epoch: int, view: int
) -> Float[np.ndarray, "items masks 4"]:
    # the longest time span of each recording, as a fraction of it
    time_width = np.full((len(seconds), 1), masks.time_width)
    if masks.time_seconds is not None:
        time_width = np.minimum(time_width, masks.time_seconds / seconds[:, None])
    # spans of time, then of mel
    is_time_mask = np.arange(masks.time_masks + masks.mel_masks) < masks.time_masks
    largest = np.where(is_time_mask, time_width, masks.mel_width)
    spans = _place_spans(is_time_mask, largest, numpy_rng(seed, "masks", epoch, view))
    if not masks.time_masks_per_second:
        return spans
    # further spans of time; those that a shorter recording does not have are empty
    count = np.rint(masks.time_masks_per_second * seconds)[:, None]
    # few different numbers, since each is a shape of a batch
    n_masks = MASK_STEP * max(1, math.ceil(count.max() / MASK_STEP))
    largest = np.where(np.arange(n_masks) < count, time_width, 0.0)
    rng = numpy_rng(seed, "masks per second", epoch, view)
    return np.concatenate([spans, _place_spans(np.ones(n_masks, bool), largest, rng)], 1)


def _place_spans(
    is_time_mask: Bool[np.ndarray, " masks"],
    largest: Float[np.ndarray, "items masks"],
    rng: np.random.Generator,
) -> Float[np.ndarray, "items masks 4"]:
    """Samples spans of time or mel, given the largest width of each as a fraction."""
    n_items, n_masks = largest.shape
    masks = np.arange(n_masks)
    # a span covers all of the other axis
    spans = np.tile(np.array([0, 1, 0, 1], np.float32), (n_items, n_masks, 1))
    start_column = np.where(is_time_mask, 0, 2)
    # widths are uniform from 0 to the largest; positions are uniform where the span fits
    position, width = rng.random((2, n_items, n_masks), dtype=np.float32)
    width *= largest
    spans[:, masks, start_column] = position * (1 - width)
    spans[:, masks, start_column + 1] = width
    return spans


def fitting_speeds(
    seconds: Sequence[float], texts: Sequence[str], speeds: Sequence[float], learnable: Learnable
) -> Bool[np.ndarray, "items speeds"]:
    """Returns at which factors of speed the recordings stay long enough for their texts."""
    fits = np.ones((len(seconds), len(speeds)), bool)
    samples = np.asarray(seconds, np.float64) * SAMPLE_RATE
    # what fits at one speed fits at slower ones
    rows = np.arange(len(seconds))
    for column in np.argsort(speeds)[::-1]:
        # resampling may round down
        lengths = (samples[rows] / speeds[column]).astype(np.int64) - 1
        lengths = lengths.clip(min=1)
        accepted = learnable(torch.from_numpy(lengths), [texts[row] for row in rows.tolist()])
        rows = rows[~np.asarray(accepted, bool)]
        fits[rows, column] = False
    return fits


def sample_speeds_again(
    augmentation: Augmentation,
    fits: Bool[np.ndarray, "items speeds"],
    speeds: Sequence[float],
    seed: int,
    epoch: int,
) -> None:
    """Replaces speeds that do not fit by one of those that do, as a function of the arguments.

    Where none fits, the first sample stays.
    """
    factors = np.asarray(speeds)
    for row in np.flatnonzero(~fits.all(1) & fits.any(1)):
        if augmentation.speed[row] not in factors[fits[row]]:
            rng = numpy_rng(seed, "speed that fits", epoch, int(row))
            augmentation.speed[row] = rng.choice(factors[fits[row]])
