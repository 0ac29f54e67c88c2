"""Strided convolutions on the samples themselves (wav2vec 2.0, arXiv:2006.11477)."""

from itertools import pairwise
from math import prod
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from famx.frontend.base import Frontend
from famx.nn.masks import length_mask
from famx.nn.pooling import centered
from famx.notation import Modality
from famx.registry import register

# width and stride of each convolution, in samples of its input; together a stride of 40 ms
CONVOLUTIONS = ((10, 5), (8, 4), (4, 2), (4, 2), (4, 2), (4, 2), (4, 2))
STRIDE = prod(stride for _, stride in CONVOLUTIONS)
SILENCE = 1e-7  # added to the variance of a signal, so that silence is not amplified


@register
class Waveform(Frontend):
    """`x <- gelu(layernorm(conv(x)))` seven times, then `W x` minus its mean over the frames.

    The signal has zero mean and unit variance at first. n samples become `ceil(n / 640)` frames of
    40 ms. All positions after the end of a signal are set to zero before each step, so that
    padding changes nothing.

    Args:
        channels: channels of the convolutions; the first two have a quarter and a half as many.
    """

    modality: ClassVar[Modality] = Modality.SPEECH

    def __init__(self, d_model: int, *, channels: int = 128):
        super().__init__()
        if channels < 4:
            raise ValueError(f"channels={channels} must be at least 4")
        widths = [1, channels // 4, channels // 2, *[channels] * (len(CONVOLUTIONS) - 2)]
        convolutions = []
        for (n_in, n_out), (width, stride) in zip(pairwise(widths), CONVOLUTIONS, strict=True):
            convolution = nn.Conv1d(n_in, n_out, width, stride)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            convolutions.append(convolution)
        self.convolutions = nn.ModuleList(convolutions)
        self.norms = nn.ModuleList([nn.LayerNorm(n_out) for n_out in widths[1:]])
        # a bias would be a part of the mean
        self.out = nn.Linear(channels, d_model, bias=False)

    def forward(
        self,
        signal: Float[Tensor, "b n"],
        lengths: Int[Tensor, " b"],
        spans: Float[Tensor, "b m 4"] | None = None,
    ) -> tuple[Float[Tensor, "b t d"], Int[Tensor, " b"]]:
        """See `Frontend.forward`; of the spans, those in time are silent, bands have no effect."""
        real = length_mask(lengths, signal.shape[1])
        x = standardized(signal.float(), real, lengths)
        if spans is not None:
            x = x.masked_fill(_time_mask(spans, lengths, x.shape[1]), 0.0)
        x = x.to(self.out.weight.dtype)[..., None]
        for convolution, norm, (width, stride) in zip(
            self.convolutions, self.norms, CONVOLUTIONS, strict=True
        ):
            x = x * length_mask(lengths, x.shape[1])[..., None]
            # as many outputs as strides have begun
            size = -(-x.shape[1] // stride)
            x = pad(x, (0, 0, 0, (size - 1) * stride + width - x.shape[1]))
            x = gelu(norm(convolution(x.mT).mT))
            lengths = (lengths + stride - 1) // stride
        return centered(self.out(x), lengths), lengths

    def n_frames(self, lengths: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Returns the number of frames of signals with these numbers of samples."""
        return (lengths + STRIDE - 1) // STRIDE


def standardized(
    signal: Float[Tensor, "b n"], real: Tensor, lengths: Int[Tensor, " b"]
) -> Float[Tensor, "b n"]:
    """Returns signals of zero mean and unit variance, zero in their padding."""
    count = lengths[:, None]
    signal = signal.masked_fill(~real, 0.0)
    centred = (signal - signal.sum(1, keepdim=True) / count) * real
    variance = centred.square().sum(1, keepdim=True) / count
    return centred * (variance + SILENCE).rsqrt()


def _time_mask(spans: Float[Tensor, "b m 4"], lengths: Int[Tensor, " b"], size: int) -> Tensor:
    """Returns True for the samples in any of the spans that cover all mel bins."""
    start, width, _, mel_width = spans.float()[..., None].unbind(2)
    width = width * (mel_width >= 1)
    time = (torch.arange(size, device=spans.device) + 0.5) / lengths[:, None, None]
    return ((start <= time) & (time < start + width)).any(1)
