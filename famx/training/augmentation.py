"""Augmentation of recordings: their speed, noise, and spans to blank."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from famx.data._audio import resample
from famx.seeding import numpy_rng
from famx.training.loader_config import LoaderConfig


@dataclass
class Augmentation:
    """Changes to the examples of one epoch, by their index.

    Args:
        speed: factor of speed.
        snr: signal-to-noise ratio in dB, infinite for no noise.
        noise_seeds: seed of the noise.
        spans: spans to blank, as in `Batch`.
    """

    speed: Float[np.ndarray, " items"]
    snr: Float[np.ndarray, " items"]
    noise_seeds: Int[np.ndarray, " items"]
    spans: Float[np.ndarray, "items masks 4"]

    def apply(self, signal: Float[Tensor, " n"], index: int) -> Float[Tensor, " m"]:
        """Changes the speed of an example, then adds white noise."""
        # faster by 5 % = fewer samples at the same rate
        signal = resample(signal, round(100 * self.speed[index]), 100)
        if np.isinf(self.snr[index]):
            return signal
        # noise whose root mean square is `snr` dB below that of the signal
        rng = np.random.default_rng(self.noise_seeds[index])
        noise = torch.from_numpy(rng.standard_normal(len(signal), np.float32))
        signal_level = signal.square().mean().sqrt()
        return signal + noise * signal_level * 10 ** (-self.snr[index] / 20)


def sample_augmentation(config: LoaderConfig, seed: int, epoch: int, n_items: int) -> Augmentation:
    """Samples the augmentation of an epoch, as a function of the arguments alone."""
    n_masks = config.time_masks + config.mel_masks
    masks = np.arange(n_masks)
    is_time_mask = masks < config.time_masks
    # a span covers all of the other axis
    spans = np.tile(np.array([0, 1, 0, 1], np.float32), (n_items, n_masks, 1))
    start_column = np.where(is_time_mask, 0, 2)
    # widths are uniform from 0 to the largest; positions are uniform where the span fits
    rng = numpy_rng(seed, "masks", epoch)
    position, width = rng.random((2, n_items, n_masks), dtype=np.float32)
    width *= np.where(is_time_mask, config.time_width, config.mel_width)
    spans[:, masks, start_column] = position * (1 - width)
    spans[:, masks, start_column + 1] = width
    return Augmentation(
        speed=numpy_rng(seed, "speed", epoch).choice(config.speed, n_items),
        snr=numpy_rng(seed, "snr", epoch).choice(config.snr or [np.inf], n_items),
        noise_seeds=numpy_rng(seed, "noise", epoch).integers(2**63, size=n_items),
        spans=spans,
    )
