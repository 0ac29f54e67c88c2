"""The spectrum along a gradient's elements, for axes that have an order (taps, mel bins)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from famx.notation import Layout, TensorInfo
from famx.registry import register
from famx.spectrum.base import SampledSpectrum, edges

TINY = torch.finfo(torch.float32).tiny


@register
class Contiguous(SampledSpectrum):
    """share_b = sum_{f in b} |F(f)|² / sum_f |F(f)|², F = rfft of the first elements without f = 0.

    Args:
        entries: number of elements that are read from each tensor; all if it has fewer.
    """

    def __init__(self, tensors: Sequence[TensorInfo], *, entries: int = 4096):
        self.entries = entries  # read by `length`, which the next line calls
        super().__init__(tensors)

    def length(self, info: TensorInfo) -> int:
        """See `SampledSpectrum.length`."""
        return min(self.entries, info.numel)

    def bands(self, layout: Layout, n_bins: int, n_bands: int) -> list[tuple[int, int]]:
        """Returns the bands of all bins except the first, which is the mean."""
        return [(start + 1, stop + 1) for start, stop in edges(layout, n_bins - 1, n_bands)]

    def samples(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Returns the first elements of each gradient."""
        samples = []
        for gradient, info in zip(gradients, self.tensors, strict=True):
            samples.append(gradient.reshape(-1)[: self.length(info)])
        return samples

    def power(self, series: Float[Tensor, "rows samples"]) -> Float[Tensor, "rows bins"]:
        """See `SampledSpectrum.power`."""
        # scaled first, since squares of small gradients underflow in fp32
        largest = series.abs().amax(-1, keepdim=True).clamp_min(TINY)
        power = torch.fft.rfft(series / largest).abs().square()
        power[:, 0] = 0.0
        return power / power.sum(-1, keepdim=True).clamp_min(TINY)
