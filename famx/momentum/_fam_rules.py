"""The four handlers of FAM, one for each kind of tensor, as tables."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from famx.momentum.base import GradientSpectrum, HistoryRule, SpectrumFactory
from famx.notation import Kind, TensorInfo


class Region(NamedTuple):
    """A range of bands whose power raises the momentum.

    Args:
        start, stop: the first quarter of the bands, and the quarter after the last one.
        threshold: share of the power above which the region counts.
        rise: increase of the base momentum.
        cap: upper bound of the raised momentum.
    """

    start: int
    stop: int
    threshold: float
    rise: float
    cap: float


# the first region that counts decides
REGIONS: dict[Kind, list[Region]] = {
    "other": [Region(2, 4, 0.3, 0.05, 0.95)],
    "norm": [Region(2, 4, 0.3, 0.05, 0.95)],
    "conv": [Region(1, 3, 0.4, 0.07, 0.97), Region(3, 4, 0.3, 0.05, 0.95)],
    "embedding": [Region(3, 4, 0.2, 0.08, 0.98)],
    "attention": [],
}
MAX_REGIONS = 2


class Power(NamedTuple):
    """The bands that have enough power to change the momentum.

    Args:
        first, second: whether each region has enough power.
        band: largest band.
        exists: whether there is a largest band.
    """

    first: Bool[Tensor, " measured"]
    second: Bool[Tensor, " measured"]
    band: Int[Tensor, " measured"]
    exists: Bool[Tensor, " measured"]


class FamRules(HistoryRule):
    """FAM's four handlers: h_b <- beta·h_b + (1 - beta)·p_b, then a rule for each kind of tensor.

    conv, embedding, norm, other: the first of `REGIONS` with enough power in h gives
    `raise_momentum(a, rise, cap)`.
    attention: a largest band below the first quarter gives `lower_momentum(a)`, a largest band
    above the third quarter gives `raise_momentum(a, .08, .98)`.
    A subclass defines when a region has enough power, and which band is the largest
    (`find_power`).

    Args:
        tensors: the parameter tensors, in the order of the gradients.
        spectrum: factory of the spectrum that measures them.
        beta: decay of the history per step, in [0, 1).
        start_step: number of first steps with the base momentum.
        min_size: number of entries that a tensor must exceed to be measured; smaller tensors keep
            their base momentum.
    """

    spectrum: GradientSpectrum
    regions: Float[Tensor, "2 measured bands"]
    thresholds: Float[Tensor, "2 measured"]
    risen: Float[Tensor, "2 measured"]
    by_largest: Bool[Tensor, " measured"]
    first_quarter: Int[Tensor, " measured"]
    third_quarter: Int[Tensor, " measured"]
    low: Float[Tensor, " measured"]
    high: Float[Tensor, " measured"]

    def __init__(
        self,
        tensors: Sequence[TensorInfo],
        spectrum: SpectrumFactory,
        *,
        beta: float,
        start_step: int,
        min_size: int,
    ):
        super().__init__(tensors, beta=beta, start_step=start_step, min_size=min_size)
        # only the followed tensors are measured
        measured = [tensors[row] for row in self.rows]
        self.spectrum = cast(GradientSpectrum, spectrum(tensors=measured))
        max_bands = max((info.n_bands for info in measured), default=0)
        # the rules as tables with one row per tensor, which decide for all tensors in one operation
        self._register_regions(measured, max_bands)
        self._register_largest_band(measured)
        self.register_buffer("history", torch.zeros(len(measured), max_bands))

    def _register_regions(self, measured: Sequence[TensorInfo], max_bands: int) -> None:
        """Stores the bands of each tensor's regions, their thresholds and the raised momentum."""
        # 1 for the bands of a region
        regions = torch.zeros(MAX_REGIONS, len(measured), max_bands)
        # a region that a tensor does not have never counts
        thresholds = torch.full((MAX_REGIONS, len(measured)), torch.inf)
        risen = self.base[self.rows].expand(MAX_REGIONS, -1).clone()
        for row, info in enumerate(measured):
            for i, region in enumerate(REGIONS[info.kind]):
                start = region.start * info.n_bands // 4
                stop = region.stop * info.n_bands // 4
                regions[i, row, start:stop] = 1.0
                thresholds[i, row] = region.threshold
                risen[i, row] = self.raise_momentum(info.base, region.rise, region.cap)
        self.register_buffer("regions", regions, persistent=False)
        self.register_buffer("thresholds", thresholds, persistent=False)
        self.register_buffer("risen", risen, persistent=False)

    def _register_largest_band(self, measured: Sequence[TensorInfo]) -> None:
        """Stores for which tensors the largest band decides, and the momentum that it leads to."""
        by_largest = torch.tensor([info.kind == "attention" for info in measured], dtype=torch.bool)
        n_bands = torch.tensor([info.n_bands for info in measured], dtype=torch.long)
        low = torch.tensor([self.lower_momentum(info.base) for info in measured])
        high = torch.tensor([self.raise_momentum(info.base, 0.08, 0.98) for info in measured])
        self.register_buffer("by_largest", by_largest, persistent=False)
        self.register_buffer("first_quarter", n_bands // 4, persistent=False)
        self.register_buffer("third_quarter", 3 * n_bands // 4, persistent=False)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)

    def forward(self, gradients: Sequence[Tensor], step: int | Tensor) -> Float[Tensor, " tensors"]:
        """See `MomentumRule.forward`."""
        if not self.rows:
            return self.base
        shares = self.spectrum([gradients[row] for row in self.rows])
        # a 0-d tensor if steps are counted on the device; then every step computes the update
        due = self.spectrum.fresh & (step > self.start_step)
        if due is not False:
            self.update_history(due, shares, self.spectrum.every)
        if self.observed:
            self.metrics = {"fired": self.changed_share()}
        return self.coefficients

    def decided_bands(self) -> Float[Tensor, "measured bands"]:
        """See `famx.nn.hooks.DecidesByBands`."""
        return torch.where(self.begun, self.spectrum.relative(self.history), torch.nan)

    def band_names(self) -> list[tuple[str, ...]]:
        """See `famx.nn.hooks.DecidesByBands`."""
        return [self.spectrum.band_names(self.tensors[row]) for row in self.rows]

    def choose(self, history: Float[Tensor, "measured bands"]) -> Float[Tensor, " measured"]:
        """See `HistoryRule.choose`."""
        return self.choose_by_kind(self.find_power(history))

    def choose_by_kind(self, power: Power) -> Float[Tensor, " measured"]:
        """Returns the coefficient of each measured tensor by the rule of its kind."""
        # by regions; if both count, the first one decides
        coefficients = torch.where(power.second, self.risen[1], self.base[self.index])
        coefficients = torch.where(power.first, self.risen[0], coefficients)
        # by the largest band
        decides = self.by_largest & power.exists
        is_low = decides & (power.band < self.first_quarter)
        coefficients = torch.where(is_low, self.low, coefficients)
        is_high = decides & (power.band > self.third_quarter)
        return torch.where(is_high, self.high, coefficients)

    @abstractmethod
    def find_power(self, history: Float[Tensor, "measured bands"]) -> Power:
        """Returns the bands that have enough power."""

    def raise_momentum(self, base: float, rise: float, cap: float) -> float:
        """Returns the base momentum plus `rise`, at most `cap`."""
        return min(cap, base + rise)

    def lower_momentum(self, base: float) -> float:
        """Returns the base momentum minus .05, at least .85."""
        return max(0.85, base - 0.05)
