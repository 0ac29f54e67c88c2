"""The spectrum as published: of elements in random order, which whitens any signal (seed.md)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from famx.notation import Layout, TensorInfo
from famx.registry import register
from famx.seeding import torch_generator
from famx.spectrum.base import SampledSpectrum

LARGE = 10_000  # elements; only a sample of larger tensors is read
MAX_ROWS = 64  # rows read from a large tensor, and as many columns
MAX_ENTRIES = 1000  # elements read from a large vector


@register
class Shuffled(SampledSpectrum):
    """share_b = sum_{f in b} |F(f)| / (sum_f |F(f)| + eps), F = rfft of sampled elements.

    Every call samples anew: from a tensor with more than 10,000 elements 64 random rows x 64 random
    columns, or 1,000 random elements of a vector; from other tensors all elements. As published,
    the bins that remain after the division into bands belong to no band.

    Args:
        seed: seed of the samples, which depend on it and on the number of the call alone.
        eps: added to the sum.
    """

    capturable = False
    exempt: ClassVar[dict[str, str]] = {
        "sums_to_one": "bins that remain after the division into bands belong to none",
        "flat_on_white": "the bin of the mean and the remaining bins are not accounted for",
        "separates_slow_and_fast": "a random order whitens any signal",
    }

    def __init__(self, tensors: Sequence[TensorInfo], *, seed: int = 0, eps: float = 1e-8):
        super().__init__(tensors)
        self.seed = seed
        self.eps = eps
        self.calls = 0

    def length(self, info: TensorInfo) -> int:
        """See `SampledSpectrum.length`."""
        if info.numel <= LARGE:
            return info.numel
        if len(info.shape) == 1:
            return MAX_ENTRIES
        rows, columns = info.shape[:2]
        return min(MAX_ROWS, rows) * min(MAX_ROWS, columns) * (info.numel // (rows * columns))

    def bands(self, layout: Layout, n_bins: int, n_bands: int) -> list[tuple[int, int]]:
        """See `SampledSpectrum.bands`."""
        if layout == "log":
            starts = [int(n_bins ** (i / n_bands) - 1) for i in range(n_bands + 1)]
            return list(pairwise(starts))
        if layout == "equal":
            size = n_bins // n_bands
            return [(i * size, (i + 1) * size) for i in range(n_bands)]
        # split: half of the bands on each half of the spectrum
        middle = n_bins // 2
        lower = self.bands("equal", middle, n_bands // 2)
        upper = self.bands("equal", n_bins - middle, n_bands - n_bands // 2)
        return lower + [(start + middle, stop + middle) for start, stop in upper]

    def draws(self, call: int) -> list[list[Tensor]]:
        """Returns the sampled indices along the leading axes of each tensor; an empty list is all.

        Args:
            call: number of the call, counted from 1.
        """
        generator = torch_generator(self.seed, call)
        draws: list[list[Tensor]] = []
        for info in self.tensors:
            indices: list[Tensor] = []
            if info.numel > LARGE:
                # only output and input channels of a convolution are sampled
                matrix = len(info.shape) > 1
                count = MAX_ROWS if matrix else MAX_ENTRIES
                for size in info.shape[:2]:
                    indices.append(torch.randperm(size, generator=generator)[:count])
            draws.append(indices)
        return draws

    def forward(self, gradients: Sequence[Tensor]) -> Float[Tensor, "tensors bands"]:
        """See `Spectrum.forward`."""
        self.calls += 1
        return super().forward(gradients)

    def samples(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Returns the elements sampled for this call."""
        samples = []
        for gradient, indices in zip(gradients, self.draws(self.calls), strict=True):
            for axis, index in enumerate(indices):
                gradient = gradient.index_select(axis, index.to(gradient.device, non_blocking=True))
            samples.append(gradient.reshape(-1))
        return samples

    def power(self, series: Float[Tensor, "rows samples"]) -> Float[Tensor, "rows bins"]:
        """Returns magnitudes, not power, as published."""
        magnitude = torch.fft.rfft(series).abs()
        return magnitude / (magnitude.sum(-1, keepdim=True) + self.eps)

    def get_extra_state(self) -> int:
        """Returns the number of calls, for `state_dict`."""
        return self.calls

    def set_extra_state(self, state: int) -> None:
        """Sets the number of calls."""
        self.calls = state
