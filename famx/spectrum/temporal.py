"""The spectrum of gradients along the steps of training, where momentum is a low-pass filter."""

from collections.abc import Sequence
from math import gcd, prod

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from famx import kernels
from famx.kernels.tensor_table import supports
from famx.notation import TensorInfo
from famx.registry import register
from famx.spectrum.base import Spectrum, edges, membership

TINY = torch.finfo(torch.float32).tiny


@register
class Temporal(Spectrum):
    """share_b = mean over coordinates of sum_{f in b} |F(f)|² / sum_f |F(f)|².

    F is the rfft over the last `window` steps. All coordinates count equally, whatever the size of
    their gradients. Shares are zero until the window is full. Tensors with the layout `log` get
    equal bands, since `log` bands need more bins than a short window has.

    Args:
        coordinates: number of elements followed in each tensor, spread over its rows and columns.
        window: steps of a measurement; the spectrum has window // 2 + 1 bins, the first of which is
            the mean.
        every: steps between two measurements.

    Attributes:
        found_inf: 0-d flag of the next call; where it is 1, `ring` does not change.
        flagged_buffers: names of the buffers that this holds for.
    """

    flagged_buffers = ("ring",)

    ring: Tensor
    followed: Int[Tensor, "2 tensors"]
    shares: Float[Tensor, "tensors bands"]
    member: Float[Tensor, "tensors bins bands"]

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
        self.coordinates = coordinates
        self.window = window
        self.every = every
        self.fresh = False
        self.found_inf: Tensor | None = None
        self.calls: int | Tensor = 0
        # number and stride in memory of the followed elements of each tensor
        self.counts = [min(coordinates, info.numel) for info in tensors]
        self.strides = [_stride(info.shape, coordinates) for info in tensors]
        followed = torch.tensor([self.counts, self.strides], dtype=torch.long)
        self.register_buffer("followed", followed, persistent=False)
        # the bins of each band of each tensor
        n_bins = window // 2 + 1
        member = torch.zeros(len(tensors), n_bins, self.max_bands)
        for row, info in zip(member, tensors, strict=True):
            row.copy_(membership(self.bands(info), n_bins, self.max_bands))
        self.register_buffer("member", member, persistent=False)
        self.register_buffer("white_shares", member.sum(1) / n_bins, persistent=False)
        # half precision is half the memory; its rounding is some 50 dB below the signal
        ring = torch.zeros(window, len(tensors), coordinates, dtype=torch.bfloat16)
        self.register_buffer("ring", ring)
        self.register_buffer("shares", torch.zeros(len(tensors), self.max_bands))

    def forward(self, gradients: Sequence[Tensor]) -> Float[Tensor, "tensors bands"]:
        """See `Spectrum.forward`."""
        self.calls += 1
        self.ring = self._next_ring(gradients)
        self.found_inf = None
        # a 0-d tensor if calls are counted on the device; then every call measures
        calls_past_window = self.calls - self.window
        self.fresh = (self.calls >= self.window) & (calls_past_window % self.every == 0)
        if self.fresh is not False:
            shares = self.measure()
            if isinstance(self.fresh, Tensor):
                shares = torch.where(self.fresh, shares, self.shares)
            self.shares = shares
        return self.shares

    def _next_ring(
        self, gradients: Sequence[Tensor]
    ) -> Float[Tensor, "window tensors coordinates"]:
        """Returns the ring without its oldest step, and with the sketch of the gradients."""
        ring = self.ring
        if self._has_kernel(gradients):
            from famx.kernels.sketch import sketch

            return sketch(gradients, self.followed, self.coordinates, ring, self.found_inf)
        row = self.sketch(gradients)[None].to(ring.dtype)
        moved = torch.cat([ring[1:], row])
        return moved if self.found_inf is None else torch.where(self.found_inf > 0, ring, moved)

    def sketch(self, gradients: Sequence[Tensor]) -> Float[Tensor, "tensors coordinates"]:
        """Returns the followed elements of each gradient, padded with zeros."""
        if self._has_kernel(gradients):
            from famx.kernels.sketch import sketch

            return sketch(gradients, self.followed, self.coordinates)[0]
        rows = []
        for gradient, count, stride in zip(gradients, self.counts, self.strides, strict=True):
            row = gradient.contiguous().as_strided((count,), (stride,))
            if count < self.coordinates:
                row = pad(row, (0, self.coordinates - count))
            rows.append(row)
        return torch.stack(rows)

    def _has_kernel(self, gradients: Sequence[Tensor]) -> bool:
        return supports(gradients) and self.followed.device == gradients[0].device

    def bands(self, info: TensorInfo) -> list[tuple[int, int]]:
        """Returns the first bin of each band of a tensor and the one after its last."""
        layout = "equal" if info.layout == "log" else info.layout
        return edges(layout, self.window // 2 + 1, info.n_bands)

    def band_names(self, info: TensorInfo) -> tuple[str, ...]:
        """Returns the range of periods of each band in steps, such as `11-16`.

        Bin k has the period window / k. The slowest band contains the mean, whose period is
        infinite: `32+`.
        """
        names = []
        for start, stop in self.bands(info):
            shortest = f"{self.window / max(stop - 1, 1):.2g}"
            longest = f"{self.window / max(start, 1):.2g}"
            if stop == 1:
                names.append("mean")
            elif start == 0:
                names.append(f"{shortest}+")
            else:
                names.append(shortest if shortest == longest else f"{shortest}-{longest}")
        return tuple(names)

    def degrees_of_freedom(self) -> Float[Tensor, " tensors"]:
        """Returns half a value for each bin of each coordinate that is not always zero."""
        return (self.ring != 0).any(0).sum(-1) * (self.window // 2 + 1) / 2

    def measure(self) -> Float[Tensor, "tensors bands"]:
        """Returns the shares of the current window."""
        if kernels.available(self.ring.device):
            from famx.kernels.band_shares import band_shares

            return band_shares(self.ring, self.member)
        series = self.ring.float()
        # power of each coordinate in each bin, as a share of its total power
        largest = series.abs().amax(0)
        # scaled first, since squares of small gradients underflow in fp32
        power = torch.fft.rfft(series / largest.clamp_min(TINY), dim=0).abs().square()
        power = power / power.sum(0).clamp_min(1.0)
        # mean over the coordinates that are not always zero
        mean = power.sum(-1) / (largest > 0).sum(-1).clamp_min(1)
        return torch.einsum("fm,mfb->mb", mean, self.member)

    def get_extra_state(self) -> int:
        """Returns the number of calls, for `state_dict`."""
        return int(self.calls)

    def set_extra_state(self, state: int) -> None:
        """Sets the number of calls."""
        self.calls = state


def _stride(shape: tuple[int, ...], coordinates: int) -> int:
    """Returns the widest stride that fits `coordinates` times and visits all columns equally."""
    # coprime to the number of columns, so that all columns are visited before one repeats
    stride = max(1, prod(shape) // coordinates)
    while len(shape) > 1 and gcd(stride, shape[-1]) > 1:
        stride -= 1
    return stride
