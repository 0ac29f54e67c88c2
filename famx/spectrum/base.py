"""Spectra: the interface, the division of bins into bands, and the shares of white noise."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from famx.notation import Layout, TensorInfo


class Spectrum(nn.Module, ABC):
    """Measures how each gradient's power is divided among its bands.

    A spectrum is built with `tensors`, one `TensorInfo` for each gradient, in their order. Its
    state is in buffers that a call replaces and never mutates, so that an optimizer can restore
    them when it skips a step.

    Attributes:
        fresh: whether the last call measured; if not, it returned the previous shares.
        every: number of calls from one measurement to the next.
        capturable: whether a CUDA graph can capture calls, that is, whether they never need the
            host. If the spectrum counts its calls, `calls` must then accept a 0-d tensor.
        white_shares: shares of white noise; zero in bands that a tensor does not have.
        observed, metrics: see `famx.nn.hooks.Observed`.
    """

    fresh: bool | Tensor = True
    every: int = 1
    capturable: bool = True
    observed: bool = False
    white_shares: Float[Tensor, "tensors bands"]

    def __init__(self, tensors: Sequence[TensorInfo]):
        super().__init__()
        self.tensors = tensors
        self.max_bands = max((info.n_bands for info in tensors), default=0)
        self.metrics: dict[str, Tensor] = {}

    @abstractmethod
    def forward(self, gradients: Sequence[Tensor]) -> Float[Tensor, "tensors bands"]:
        """Returns the share of power in each band, zero in bands that a tensor does not have."""

    @abstractmethod
    def degrees_of_freedom(self) -> Float[Tensor, " tensors"]:
        """Returns the number of independent power values in a measurement of each tensor.

        The elements of a tensor are assumed to be independent.
        """

    def relative(self, shares: Float[Tensor, "tensors bands"]) -> Float[Tensor, "tensors bands"]:
        """Returns the shares in units of white noise: 1 is white, NaN if a band does not exist."""
        return torch.where(self.white_shares > 0, shares / self.white_shares, torch.nan)

    def band_names(self, info: TensorInfo) -> tuple[str, ...]:
        """Returns a name for each band of a tensor; by default its number, from the slowest."""
        return tuple(f"band {i + 1}" for i in range(info.n_bands))


class SampledSpectrum(Spectrum):
    """The spectrum along the elements of a gradient, or along a sample of them.

    Tensors of the same layout, length and number of bands are measured together. A subclass defines
    the number of elements that are read (`length`), which ones (`samples`), their power (`power`),
    and the bins of each band (`bands`).
    """

    order: Tensor
    freedom: Float[Tensor, " tensors"]

    def __init__(self, tensors: Sequence[TensorInfo]):
        super().__init__(tensors)
        # rows by layout, number of bins and number of bands
        self.groups: dict[tuple[Layout, int, int], list[int]] = {}
        for row, info in enumerate(tensors):
            n_bins = self.length(info) // 2 + 1
            self.groups.setdefault((info.layout, n_bins, info.n_bands), []).append(row)
        # the bins of each band; their share of all bins is the power of white noise
        white_shares = torch.zeros(len(tensors), self.max_bands)
        for group, ((layout, n_bins, n_bands), rows) in enumerate(self.groups.items()):
            member = membership(self.bands(layout, n_bins, n_bands), n_bins, self.max_bands)
            white_shares[rows] = member.sum(0) / member.sum().clamp_min(1.0)
            self.register_buffer(f"member{group}", member, persistent=False)
        # restores the order of the tensors from that of the groups
        rows_in_groups = [row for rows in self.groups.values() for row in rows]
        order = torch.tensor(rows_in_groups, dtype=torch.long).argsort()
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("white_shares", white_shares, persistent=False)
        freedom = torch.tensor([(self.length(info) // 2 + 1) / 2 for info in tensors])
        self.register_buffer("freedom", freedom, persistent=False)

    def forward(self, gradients: Sequence[Tensor]) -> Float[Tensor, "tensors bands"]:
        """See `Spectrum.forward`."""
        samples = self.samples(gradients)
        shares = []
        for group, rows in enumerate(self.groups.values()):
            # the range of half precision is too small for powers
            series = torch.stack([samples[row] for row in rows]).float()
            shares.append(self.power(series) @ self.get_buffer(f"member{group}"))
        return torch.cat(shares)[self.order]

    def degrees_of_freedom(self) -> Float[Tensor, " tensors"]:
        """Returns half a value for each bin."""
        return self.freedom

    @abstractmethod
    def length(self, info: TensorInfo) -> int:
        """Returns the number of elements that are read from a tensor."""

    @abstractmethod
    def bands(self, layout: Layout, n_bins: int, n_bands: int) -> list[tuple[int, int]]:
        """Returns the first bin of each band and the one after its last."""

    @abstractmethod
    def samples(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Returns the elements that are read, one series per tensor."""

    @abstractmethod
    def power(self, series: Float[Tensor, "rows samples"]) -> Float[Tensor, "rows bins"]:
        """Returns the power in each bin of each series, as a share of the total power."""


def edges(layout: Layout, n_bins: int, n_bands: int) -> list[tuple[int, int]]:
    """Returns the first bin of each band and the one after its last.

    Every bin belongs to one band, and every band has a bin.
    equal: bands of n_bins // n_bands bins.
    log: from N^(i/n) - 1 to N^((i+1)/n) - 1, at least one bin each.
    split: half of the bands on each half of the spectrum.
    Bins that remain after a division belong to the last band.

    Raises:
        ValueError: there are fewer bins than bands.
    """
    if n_bins < n_bands:
        raise ValueError(f"n_bands={n_bands} is more than the {n_bins} bins of the spectrum")
    if layout == "split" and n_bands > 1:
        middle = n_bins // 2
        lower = edges("equal", middle, n_bands // 2)
        upper = edges("equal", n_bins - middle, n_bands - n_bands // 2)
        return lower + [(start + middle, stop + middle) for start, stop in upper]
    starts = [0]
    for i in range(1, n_bands):
        start = int(n_bins ** (i / n_bands) - 1) if layout == "log" else i * (n_bins // n_bands)
        # leaves at least one bin to the previous band, and to each band from here on
        starts.append(min(max(start, starts[-1] + 1), n_bins - n_bands + i))
    return list(zip(starts, [*starts[1:], n_bins], strict=True))


def membership(
    bands: Sequence[tuple[int, int]], n_bins: int, max_bands: int
) -> Float[Tensor, "bins bands"]:
    """Returns a matrix with 1 where the bin belongs to the band, otherwise 0."""
    member = torch.zeros(n_bins, max_bands)
    for band, (start, stop) in enumerate(bands):
        member[start:stop, band] = 1.0
    return member
