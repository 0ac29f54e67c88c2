"""The spectrum along a gradient's entries: says something where an axis has an order (taps, mel bins, positions)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from famx.notation import Layout, TensorInfo
from famx.registry import register
from famx.spectrum.base import Sampled, edges


@register
class Contiguous(Sampled):
    """share_b = sum_{f in b} |F(f)|² / sum_f |F(f)|², F = rfft of the first entries, without the zero bin.

    Args:
        entries: that are read of each tensor; all where it has fewer.
    """

    def __init__(self, tensors: Sequence[TensorInfo], *, entries: int = 4096):
        self.entries = entries
        super().__init__(tensors)

    def length(self, info: TensorInfo) -> int:
        return min(self.entries, info.numel)

    def bands(self, layout: Layout, n_bins: int, n_bands: int) -> list[tuple[int, int]]:
        return [(start + 1, stop + 1) for start, stop in edges(layout, n_bins - 1, n_bands)]

    def samples(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        return [
            gradient.reshape(-1)[: self.length(info)]
            for gradient, info in zip(gradients, self.tensors, strict=True)
        ]

    def power(self, series: Float[Tensor, "alike samples"]) -> Float[Tensor, "alike bins"]:
        # scaled first: squares of small gradients leave the range of fp32
        largest = series.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        power = torch.fft.rfft(series / largest).abs().square()
        power[:, 0] = 0.0
        return power / power.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
