"""FAM's rules in units of white noise: a band counts when it is louder than chance (seed.md)."""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from famx import registry
from famx.momentum._fam_rules import FamRules
from famx.momentum.base import SpectrumFactory
from famx.notation import TensorInfo
from famx.registry import register


@register
class Fam(FamRules):
    """The four handlers of FAM; bands fire above a share of w·(1 + max(margin, sigmas·s)).

    w is their share in white noise, and s = sqrt((1 - w) / (w·freedom)) the relative deviation that
    white noise has in one measurement, of entries that are not all zero and do not move together
    (white noise of a single direction can fire). The largest band is the loudest, share / w, of
    those that fire alone. With `layer_boost`, after the rule: a largest band in the lowest third
    multiplies the coefficient by .95, in the highest third by 1.05, up to .98. On white noise the
    base momentum stays, and no cap lowers a base above it.

    Args:
        spectrum: factory of the spectrum that measures the gradients; `temporal` when None.
        beta: decay of the history per step, in [0, 1).
        margin: power beyond that of white noise that bands must have, as a share of the latter.
        sigmas: standard deviations of chance that bands must exceed, too.
        start_step: step up to which the base momentum stays.
        min_size: number of entries that a tensor must exceed to be measured.
        layer_boost: whether the largest band moves every kind of tensor once more.
    """

    widths: Float[Tensor, "2 measured"]
    lowest_third: Int[Tensor, " measured"]
    highest_third: Int[Tensor, " measured"]

    def __init__(
        self,
        tensors: Sequence[TensorInfo],
        spectrum: SpectrumFactory | None = None,
        *,
        beta: float = 0.99,
        margin: float = 0.25,
        sigmas: float = 4.0,
        start_step: int = 100,
        min_size: int = 256,
        layer_boost: bool = True,
    ):
        if spectrum is None:
            spectrum = partial(registry.build, "spectrum", {"name": "temporal"})
        super().__init__(tensors, spectrum, beta=beta, start_step=start_step, min_size=min_size)
        self.layer_boost = layer_boost
        self.margin = margin
        self.sigmas = sigmas
        # the white share of each region, and the bands that begin and end the outer thirds
        widths = (self.regions * self.spectrum.white_shares).sum(-1)
        n_bands = torch.tensor([self.tensors[row].n_bands for row in self.rows], dtype=torch.long)
        self.register_buffer("widths", widths, persistent=False)
        self.register_buffer("lowest_third", n_bands // 3, persistent=False)
        self.register_buffer("highest_third", n_bands - n_bands // 3, persistent=False)

    def firing_threshold(
        self, width: Float[Tensor, "..."], freedom: Float[Tensor, "..."]
    ) -> Float[Tensor, "..."]:
        """Returns the share above which bands are louder than chance, infinity for no bands.

        Args:
            width: share of white noise in these bands.
            freedom: independent power values in a measurement.
        """
        chance = self.sigmas * torch.sqrt((1 - width).clamp_min(0) / (width * freedom.clamp_min(1)))
        return torch.where(width > 0, width * (1 + chance.clamp_min(self.margin)), torch.inf)

    def exceeds(self, power: Float[Tensor, "2 measured bands"]) -> Bool[Tensor, "2 measured"]:
        """See `FamRules.exceeds`."""
        freedom = self.spectrum.degrees_of_freedom()
        return power.sum(-1) > self.firing_threshold(self.widths, freedom)

    def largest_band(
        self, history: Float[Tensor, "measured bands"]
    ) -> tuple[Int[Tensor, "..."], Bool[Tensor, "..."]]:
        """See `FamRules.largest_band`."""
        white = self.spectrum.white_shares
        freedom = self.spectrum.degrees_of_freedom()[:, None]
        fires = history > self.firing_threshold(white, freedom)
        loudness = torch.where(fires, history / white, 0.0)
        loudest, band = loudness.max(1)
        return band, loudest > 0

    def choose(self, history: Float[Tensor, "measured bands"]) -> Float[Tensor, " measured"]:
        """See `HistoryRule.choose`."""
        # the rule of the kind, then the layer boost
        coefficients = super().choose(history)
        if not self.layer_boost:
            return coefficients
        band, exists = self.largest_band(history)
        slow = exists & (band < self.lowest_third)
        fast = exists & (band >= self.highest_third)
        coefficients = torch.where(slow, 0.95 * coefficients, coefficients)
        boosted = torch.maximum(coefficients, (1.05 * coefficients).clamp_max(0.98))
        return torch.where(fast, boosted, coefficients)

    def raise_momentum(self, base: float, rise: float, cap: float) -> float:
        """Returns the raised momentum, never less than the base."""
        return max(base, super().raise_momentum(base, rise, cap))

    def lower_momentum(self, base: float) -> float:
        """Returns the lowered momentum, never more than the base."""
        return min(base, super().lower_momentum(base))
