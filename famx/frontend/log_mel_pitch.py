"""Frames of log_mel and the pitch of each, by autocorrelation (after the author of seed.md)."""

from math import log
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from famx.frontend.log_mel import LogMel
from famx.nn.masks import length_mask
from famx.notation import SAMPLE_RATE
from famx.registry import register

# in samples: a frame every 40 ms, as of log_mel, and a window of 80 ms, three periods at 40 Hz
HOP = 640
WINDOW = 1280
N_FFT = 2560  # so that the autocorrelation does not wrap around
LOWEST = 60  # Hz
HIGHEST = 400  # Hz
CENTRE = 150  # Hz, the pitch with the feature 0
SILENCE = 1e-9  # added to the power of a window
OCTAVE_COST = 0.1  # of a lag twice as long, which is a period of the same signal


@register
class LogMelPitch(LogMel):
    """`x + W [v * log2(f0 / 150 Hz), v]`: the frames of `log_mel`, their pitch and its strength.

    v is the largest normalised autocorrelation of a window of 80 ms over the lags of 60 to 400 Hz,
    `r(lag) = sum x_n x_(n + lag) / sum x_n^2`, corrected for the overlap, from 0 (noise) to 1;
    `f0 = 16,000 / lag`. Of lags of equal strength the shortest counts. W is 0 at first. The pitch
    has no gradient.

    Args:
        n_mels, channels, context, normalize: as of `log_mel`.
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_mels: int = 80,
        channels: int = 32,
        context: int = 15,
        normalize: Literal["utterance", "global"] = "utterance",
    ):
        super().__init__(
            d_model, n_mels=n_mels, channels=channels, context=context, normalize=normalize
        )
        self.pitch_out = nn.Linear(2, d_model, bias=False)
        nn.init.zeros_(self.pitch_out.weight)

    def forward(
        self,
        signal: Float[Tensor, "b n"],
        lengths: Int[Tensor, " b"],
        spans: Float[Tensor, "b m 4"] | None = None,
    ) -> tuple[Float[Tensor, "b t d"], Int[Tensor, " b"]]:
        """See `Frontend.forward`; the pitch is measured inside of spans too."""
        x, n_frames = super().forward(signal, lengths, spans)
        with torch.no_grad(), torch.autocast(signal.device.type, enabled=False):
            f0, strength = pitch(signal.float(), lengths, x.shape[1])
            features = torch.stack((strength * (f0 / CENTRE).log2(), strength), -1)
        return x + self.pitch_out(features.to(self.pitch_out.weight.dtype)), n_frames


def pitch(
    signal: Float[Tensor, "b n"], lengths: Int[Tensor, " b"], n_frames: int
) -> tuple[Float[Tensor, "b {n_frames}"], Float[Tensor, "b {n_frames}"]]:
    """Returns the fundamental frequency of each frame in Hz, and its strength from 0 to 1."""
    # windows that begin with the frames; zero after the end of a signal
    real = signal.masked_fill(~length_mask(lengths, signal.shape[1]), 0.0)
    needed = (n_frames - 1) * HOP + WINDOW
    windows = pad(real, (0, max(0, needed - real.shape[1])))[:, :needed].unfold(1, WINDOW, HOP)
    windows = windows - windows.mean(-1, keepdim=True)
    # autocorrelation r(lag) / r(0), with the shrinking overlap corrected
    spectrum = torch.fft.rfft(windows, N_FFT)
    power = spectrum.real.square() + spectrum.imag.square()
    correlation = torch.fft.irfft(power, N_FFT)
    lags = torch.arange(SAMPLE_RATE // HIGHEST, SAMPLE_RATE // LOWEST + 1, device=signal.device)
    overlap = 1 - lags / WINDOW
    ratio = correlation[..., lags] / (correlation[..., :1] + SILENCE) / overlap
    # a longer lag must be clearly better
    cost = OCTAVE_COST * (lags / lags[0]).log() / log(2)
    best = (ratio - cost).argmax(-1, keepdim=True)
    strength = ratio.gather(-1, best).squeeze(-1).clamp(0, 1)
    return SAMPLE_RATE / lags[best.squeeze(-1)], strength
