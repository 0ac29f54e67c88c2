"""The spectrum of a gradient's coordinates along the steps of training, where momentum is a low-pass filter."""

from collections.abc import Sequence
from math import gcd

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from famx.notation import TensorInfo
from famx.registry import register
from famx.spectrum.base import Spectrum, edges, membership


@register
class Temporal(Spectrum):
    """share_b = mean over coordinates of sum_{f in b} |F(f)|² / sum_f |F(f)|², F = rfft of the last `window` steps.

    Every coordinate counts alike, however large its gradient. Shares are zero until the window is full.
    `log` bands need more bins than a short window has: such tensors get equal bands.

    Args:
        coordinates: entries of each tensor that are followed, spread over its rows and columns.
        window: steps looked back upon; the spectrum has window // 2 + 1 bins, the first is the steady part.
        every: steps between two measurements.
    """

    def __init__(
        self,
        tensors: Sequence[TensorInfo],
        *,
        coordinates: int = 64,
        window: int = 32,
        every: int = 8,
    ):
        super().__init__(tensors)
        if min(coordinates, every) < 1:
            raise ValueError(f"coordinates={coordinates} and every={every} must be at least 1")
        self.coordinates, self.window, self.every = coordinates, window, every
        self.places = [
            ((min(coordinates, info.numel),), (_stride(info.shape, coordinates),))
            for info in tensors
        ]
        self.missing = [
            (i, coordinates - n) for i, ((n,), _) in enumerate(self.places) if n < coordinates
        ]
        self.calls, self.fresh = 0, False
        n_bins = window // 2 + 1
        member = torch.zeros(len(tensors), n_bins, self.most_bands)
        for row, info in zip(member, tensors, strict=True):
            layout = "equal" if info.layout == "log" else info.layout
            row.copy_(membership(edges(layout, n_bins, info.n_bands), n_bins, self.most_bands))
        self.register_buffer("member", member, persistent=False)
        self.register_buffer("white", member.sum(1) / n_bins, persistent=False)
        # half the memory; its rounding is some 50 dB below the signal
        self.register_buffer(
            "ring", torch.zeros(window, len(tensors), coordinates, dtype=torch.bfloat16)
        )
        self.register_buffer("shares", torch.zeros(len(tensors), self.most_bands))

    def forward(self, gradients: Sequence[Tensor]) -> Float[Tensor, "tensors bands"]:
        self.calls += 1
        self.ring = torch.cat([self.ring[1:], self.sketch(gradients)[None].to(self.ring.dtype)])
        self.fresh = (self.calls >= self.window) & ((self.calls - self.window) % self.every == 0)
        if self.fresh is not False:
            shares = self.measure()
            self.shares = (
                torch.where(self.fresh, shares, self.shares)
                if isinstance(self.fresh, Tensor)
                else shares
            )
        return self.shares

    def sketch(self, gradients: Sequence[Tensor]) -> Float[Tensor, "tensors coordinates"]:
        """The followed entries of each gradient, zeros after the last where there are fewer."""
        rows = [
            g.contiguous().as_strided(*place)
            for g, place in zip(gradients, self.places, strict=True)
        ]
        for i, missing in self.missing:
            rows[i] = pad(rows[i], (0, missing))
        return torch.stack(rows)

    @property
    def freedom(self) -> Float[Tensor, " tensors"]:
        """Half a value for each bin of each coordinate that was not zero all the time."""
        return (self.ring != 0).any(0).sum(-1) * (self.window // 2 + 1) / 2

    def measure(self) -> Float[Tensor, "tensors bands"]:
        """The shares of the window as it stands."""
        series = self.ring.float()
        largest = series.abs().amax(0)
        # scaled first: squares of small gradients leave the range of fp32
        power = (
            torch.fft.rfft(series / largest.clamp_min(torch.finfo(torch.float32).tiny), dim=0)
            .abs()
            .square()
        )
        power = power / power.sum(0).clamp_min(1.0)
        mean = power.sum(-1) / (largest > 0).sum(-1).clamp_min(1)
        return torch.einsum("fm,mfb->mb", mean, self.member)

    def get_extra_state(self) -> int:
        return int(self.calls)

    def set_extra_state(self, state: int) -> None:
        self.calls = state


def _stride(shape: tuple[int, ...], coordinates: int) -> int:
    """The widest stride that `coordinates` steps fit into and that visits all columns of a matrix alike."""
    numel = 1
    for size in shape:
        numel *= size
    stride = max(1, numel // coordinates)
    while len(shape) > 1 and gcd(stride, shape[-1]) > 1:
        stride -= 1
    return stride
