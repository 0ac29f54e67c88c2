"""The spectrum as published: of entries in random order, so that any signal looks white (seed.md)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from famx.notation import Layout, TensorInfo
from famx.registry import register
from famx.spectrum.base import Sampled


@register
class Shuffled(Sampled):
    """share_b = sum_{f in b} |F(f)| / (sum_f |F(f)| + eps), F = rfft of the entries drawn for this call.

    Of a tensor with more than 10,000 entries 64 random rows x 64 random columns, or 1,000 random entries of a vector;
    of the others all. Literal: bins left over by the division into bands belong to none.

    Args:
        seed: the draw is a function of it and of the number of the call; no global generator is read.
        eps: added to the sum.
    """

    capturable = False
    exempt: ClassVar[dict[str, str]] = {
        "sums_to_one": "bins left over by the division into bands belong to none",
        "flat_on_white": "the steady bin and the bins left over are not accounted for",
        "separates_slow_and_fast": "a random order whitens any signal",
    }

    def __init__(self, tensors: Sequence[TensorInfo], *, seed: int = 0, eps: float = 1e-8):
        self.seed, self.eps, self.calls = seed, eps, 0
        super().__init__(tensors)

    def length(self, info: TensorInfo) -> int:
        if info.numel <= 10_000:
            return info.numel
        if len(info.shape) == 1:
            return 1000
        return (
            min(64, info.shape[0])
            * min(64, info.shape[1])
            * (info.numel // (info.shape[0] * info.shape[1]))
        )

    def bands(self, layout: Layout, n_bins: int, n_bands: int) -> list[tuple[int, int]]:
        if layout == "log":
            cuts = [int(n_bins ** (i / n_bands) - 1) for i in range(n_bands + 1)]
            return list(pairwise(cuts))
        if layout == "equal":
            return [
                (i * (n_bins // n_bands), (i + 1) * (n_bins // n_bands)) for i in range(n_bands)
            ]
        half = n_bins // 2
        upper = self.bands("equal", n_bins - half, n_bands - n_bands // 2)
        return self.bands("equal", half, n_bands // 2) + [
            (start + half, stop + half) for start, stop in upper
        ]

    def draws(self, call: int) -> list[list[Tensor]]:
        """The indices drawn along each tensor's leading axes at a call, counted from 1; none where all is read."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + call)
        drawn: list[list[Tensor]] = []
        for info in self.tensors:
            large = info.numel > 10_000
            axes = (info.shape[:2], (64, 64)) if len(info.shape) > 1 else (info.shape, (1000,))
            sizes = zip(*axes, strict=True) if large else ()
            drawn.append([torch.randperm(size, generator=generator)[:most] for size, most in sizes])
        return drawn

    def forward(self, gradients: Sequence[Tensor]) -> Float[Tensor, "tensors bands"]:
        self.calls += 1
        return super().forward(gradients)

    def samples(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        picked = []
        for gradient, draw in zip(gradients, self.draws(self.calls), strict=True):
            for axis, index in enumerate(draw):
                gradient = gradient.index_select(axis, index.to(gradient.device, non_blocking=True))
            picked.append(gradient.reshape(-1))
        return picked

    def power(self, series: Float[Tensor, "alike samples"]) -> Float[Tensor, "alike bins"]:
        magnitude = torch.fft.rfft(series).abs()
        return magnitude / (magnitude.sum(-1, keepdim=True) + self.eps)

    def get_extra_state(self) -> int:
        return self.calls

    def set_extra_state(self, state: int) -> None:
        self.calls = state
