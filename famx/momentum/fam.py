"""FAM's rules in units of white noise: a band counts if its power exceeds chance (seed.md)."""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from famx import registry
from famx.momentum._fam_rules import FamRules, Power
from famx.momentum.base import SpectrumFactory
from famx.notation import TensorInfo
from famx.registry import register


@register
class Fam(FamRules):
    """The four handlers of FAM; bands fire if their share exceeds w·(1 + max(margin, sigmas·s)).

    w is the share of these bands in white noise, and s = sqrt((1 - w) / (w·freedom)) is its
    relative standard deviation in one measurement. This holds for elements that are not all zero
    and vary independently; white noise along a single direction can fire. The largest band is the
    one with the largest share / w among the bands that fire. With `layer_boost`, a largest band in
    the lowest third then multiplies the coefficient by .95, one in the highest third by 1.05, up to
    .98. On white noise the base momentum stays, and a base above a cap is not lowered to it.

    Args:
        spectrum: factory of the spectrum that measures the gradients; `temporal` when None.
        beta: decay of the history per step, in [0, 1).
        margin: smallest excess of power over white noise, as a share of the power of white noise.
        sigmas: smallest excess of power over white noise, in standard deviations.
        start_step: number of first steps with the base momentum.
        min_size: number of elements that a tensor must exceed to be measured.
        layer_boost: whether the largest band changes the momentum once more, for every kind.
    """

    widths: Float[Tensor, "measured widths"]
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
        # the white shares of the regions and bands, and the bands that bound the outer thirds
        white = self.spectrum.white_shares
        widths = torch.cat([(self.regions * white).sum(-1).mT, white], 1)
        n_bands = torch.tensor([self.tensors[row].n_bands for row in self.rows], dtype=torch.long)
        self.register_buffer("widths", widths, persistent=False)
        self.register_buffer("lowest_third", n_bands // 3, persistent=False)
        self.register_buffer("highest_third", n_bands - n_bands // 3, persistent=False)

    def firing_thresholds(self) -> Float[Tensor, "measured widths"]:
        """Returns the shares above which regions and bands fire, infinity for those of no width."""
        width = self.widths
        freedom = self.spectrum.degrees_of_freedom()[:, None]
        chance = self.sigmas * torch.sqrt((1 - width).clamp_min(0) / (width * freedom.clamp_min(1)))
        return torch.where(width > 0, width * (1 + chance.clamp_min(self.margin)), torch.inf)

    def find_power(self, history: Float[Tensor, "measured bands"]) -> Power:
        """See `FamRules.find_power`."""
        thresholds = self.firing_thresholds()
        # regions
        first, second = (self.regions * history).sum(-1) > thresholds[:, :2].mT
        # bands
        fires = history > thresholds[:, 2:]
        loudness = torch.where(fires, history / self.spectrum.white_shares, 0.0)
        loudest, band = loudness.max(1)
        return Power(first, second, band, loudest > 0)

    def choose(self, history: Float[Tensor, "measured bands"]) -> Float[Tensor, " measured"]:
        """See `HistoryRule.choose`."""
        # the rule of each kind
        power = self.find_power(history)
        coefficients = self.choose_by_kind(power)
        if not self.layer_boost:
            return coefficients
        # the layer boost
        slow = power.exists & (power.band < self.lowest_third)
        fast = power.exists & (power.band >= self.highest_third)
        coefficients = torch.where(slow, 0.95 * coefficients, coefficients)
        boosted = torch.maximum(coefficients, (1.05 * coefficients).clamp_max(0.98))
        return torch.where(fast, boosted, coefficients)

    def raise_momentum(self, base: float, rise: float, cap: float) -> float:
        """Returns the raised momentum, never less than the base."""
        return max(base, super().raise_momentum(base, rise, cap))

    def lower_momentum(self, base: float) -> float:
        """Returns the lowered momentum, never more than the base."""
        return min(base, super().lower_momentum(base))
