"""Normalised log-mel spectrograms, which several frontends of speech begin with."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, distributed
from torch.nn.functional import pad

from famx.frontend._spans import span_cells
from famx.frontend.base import Frontend
from famx.nn.masks import length_mask
from famx.notation import SAMPLE_RATE

# in samples: a window of 25 ms, a hop of 10 ms, and the window padded to a power of two
WINDOW = 400
HOP = 160
N_FFT = 512
MAX_SIZE = 4096  # upper bound of mel bins, channels, and frames of context
SILENCE = 1e-9  # lower bound of the mean energy that energies are divided by
FLOOR = 1e-6  # added to energies in units of the utterance's mean: 60 dB below it


class MelSpectrogram(Frontend):
    """`normalised log(mel |FFT(hann x)|^2)`; a subclass turns it into frames.

    Args:
        n_mels: mel bins between 0 and 8,000 Hz.
        normalize: zero mean and unit variance of each mel bin, over each utterance (`utterance`) or
            over all training data so far (`global`), in all processes of a run.
    """

    window: Float[Tensor, " w"]
    filters: Float[Tensor, "bins f"]
    count: Float[Tensor, ""]
    mean: Float[Tensor, " f"]
    square: Float[Tensor, " f"]

    def __init__(self, n_mels: int, normalize: Literal["utterance", "global"]):
        super().__init__()
        if normalize not in ("utterance", "global"):
            raise ValueError(f"normalize={normalize} is neither utterance nor global")
        if not 4 <= n_mels <= MAX_SIZE:
            raise ValueError(f"n_mels={n_mels} must be between 4 and {MAX_SIZE:,}")
        self.n_mels = n_mels
        self.normalize = normalize
        self.is_counted = True
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("filters", mel_filters(n_mels), persistent=False)
        if normalize == "global":
            self.register_buffer("count", torch.zeros(()))
            self.register_buffer("mean", torch.zeros(n_mels))
            self.register_buffer("square", torch.ones(n_mels))

    def spectrogram(
        self,
        signal: Float[Tensor, "b n"],
        lengths: Int[Tensor, " b"],
        spans: Float[Tensor, "b m 4"] | None,
    ) -> tuple[Float[Tensor, "b t f"], Int[Tensor, " b"]]:
        """Returns the spectrogram in 32 bits, and its number of windows.

        Cells whose centres lie in a span are set to the mean.
        """
        with torch.no_grad(), torch.autocast(signal.device.type, enabled=False):
            x, lengths = self.features(signal.float(), lengths)
            x = self.standardize(x, length_mask(lengths, x.shape[1])[..., None])
            # with spans at the mean of 0
            if spans is not None:
                x = x.masked_fill(span_cells(spans, lengths, x.shape[1], self.n_mels), 0.0)
        return x, lengths

    def features(
        self, signal: Float[Tensor, "b n"], lengths: Int[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b t f"], Int[Tensor, " b"]]:
        """Returns log energies of windows in units of the signal's mean, and the window counts."""
        # all windows of the longest signal
        signal = signal.masked_fill(~length_mask(lengths, signal.shape[1]), 0.0)
        n_windows = 1 + (max(0, signal.shape[1] - WINDOW) + HOP - 1) // HOP
        signal = pad(signal, (0, (n_windows - 1) * HOP + WINDOW - signal.shape[1]))
        # their energies
        spectrum = torch.fft.rfft(signal.unfold(1, WINDOW, HOP) * self.window.float(), N_FFT)
        energy = (spectrum.real.square() + spectrum.imag.square()) @ self.filters.float()
        # divided by the mean over the signal, so that loudness has no effect; the lower bound keeps
        # silence from being amplified
        lengths = n_windows_of(lengths)
        valid = length_mask(lengths, n_windows)[..., None]
        mean = (energy * valid).sum((1, 2), keepdim=True) / (lengths * self.n_mels)[:, None, None]
        return (energy / mean.clamp(min=SILENCE) + FLOOR).log(), lengths

    def standardize(
        self, x: Float[Tensor, "b t f"], valid: Bool[Tensor, "b t 1"]
    ) -> Float[Tensor, "b t f"]:
        """Returns x with zero mean and unit variance of each mel bin; training updates `global`."""
        x = x * valid
        if self.normalize == "utterance":
            count = valid.sum(1, keepdim=True)
            mean = x.sum(1, keepdim=True) / count
            variance = ((x - mean) * valid).square().sum(1, keepdim=True) / count
        else:
            if self.training:
                self._update_statistics(x, valid)
            mean = self.mean
            variance = (self.square - self.mean.square()).clamp(min=0)
        return (x - mean) * (variance + 1e-2).rsqrt()

    def _update_statistics(self, x: Float[Tensor, "b t f"], valid: Bool[Tensor, "b t 1"]) -> None:
        """Adds the windows of a batch to the statistics, in a group those of all processes."""
        count = valid.sum()
        total = x.sum((0, 1))
        square = x.square().sum((0, 1))
        if distributed.is_available() and distributed.is_initialized():
            # one exchange of all sums, to which repeated rows add nothing
            sums = torch.cat([count[None].to(total.dtype), total, square]) * self.is_counted
            distributed.all_reduce(sums)
            count, total, square = sums.split([1, self.n_mels, self.n_mels])
            count = count[0]
        self.count += count
        weight = count / self.count
        self.mean.lerp_(total / count, weight)
        self.square.lerp_(square / count, weight)


def n_windows_of(lengths: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Returns how many windows cover signals with these numbers of samples."""
    return 1 + ((lengths - WINDOW).clamp(min=0) + HOP - 1) // HOP


def mel_filters(n_mels: int) -> Float[Tensor, "bins {n_mels}"]:
    """Returns triangles of height 1 over FFT bins, in equal steps of 2595 log10(1 + Hz / 700)."""
    top = torch.tensor(SAMPLE_RATE / 2)
    edges = 700 * (10 ** (torch.linspace(0, 1, n_mels + 2) * (1 + top / 700).log10()) - 1)
    hertz = torch.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)[:, None]
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)
