"""FAM's rules in units of white noise: a band counts when it is louder than chance (seed.md)."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from famx import registry
from famx.momentum.base import FamRules
from famx.notation import TensorInfo
from famx.registry import register


@register
class Fam(FamRules):
    """The four handlers of FAM; bands of white share w fire when their share exceeds w·(1 + max(margin, sigmas·s)).

    s = sqrt((1 - w) / (w·freedom)) is the relative deviation that white noise has in one measurement, of entries that
    are not all zero and do not move together (white noise of a single direction can move it). The largest
    band is the loudest, share / w, of those that fire alone. With `layer_boost`, after the rule: a largest band in
    the lowest third multiplies the coefficient by .95, in the highest third by 1.05, up to .98.
    On white noise the base momentum stays, and no cap lowers a base above it.

    Args:
        spectrum: factory of what measures the gradients; `temporal` where none is given.
        beta: decay of the history per step.
        margin: what bands must have beyond white noise, as a share of that.
        sigmas: deviations of chance that they must exceed, too.
        start_step: step up to which the base momentum stays.
        min_size: entries a tensor must have more of to be measured.
        layer_boost: whether the largest band moves every kind of tensor once more.
    """

    def __init__(
        self,
        tensors: Sequence[TensorInfo],
        spectrum: Callable[..., nn.Module] | None = None,
        *,
        beta: float = 0.99,
        margin: float = 0.25,
        sigmas: float = 4.0,
        start_step: int = 100,
        min_size: int = 256,
        layer_boost: bool = True,
    ):
        usual = partial(registry.build, "spectrum", {"name": "temporal"})
        super().__init__(
            tensors, spectrum or usual, beta=beta, start_step=start_step, min_size=min_size
        )
        self.layer_boost, self.margin, self.sigmas = layer_boost, margin, sigmas
        n_bands = torch.tensor([self.tensors[i].n_bands for i in self.rows], dtype=torch.long)
        tables = {
            "widths": (self.regions * self.spectrum.white).sum(-1),
            "lowest_third": n_bands // 3,
            "highest_third": n_bands - n_bands // 3,
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def limit(
        self, width: Float[Tensor, "..."], freedom: Float[Tensor, "..."]
    ) -> Float[Tensor, "..."]:
        """The share from which on bands of that share of white noise are louder than chance; none where that is 0."""
        chance = self.sigmas * torch.sqrt((1 - width).clamp_min(0) / (width * freedom.clamp_min(1)))
        return torch.where(width > 0, width * (1 + chance.clamp_min(self.margin)), torch.inf)

    def over(self, power: Float[Tensor, "2 measured bands"]) -> Bool[Tensor, "2 measured"]:
        return power.sum(-1) > self.limit(self.widths, self.spectrum.freedom)

    def largest(
        self, history: Float[Tensor, "measured bands"]
    ) -> tuple[Int[Tensor, "..."], Bool[Tensor, "..."]]:
        white = self.spectrum.white
        loud = torch.where(
            history > self.limit(white, self.spectrum.freedom[:, None]), history / white, 0.0
        )
        loudest, band = loud.max(1)
        return band, loudest > 0

    def choose(self, history: Float[Tensor, "measured bands"]) -> Float[Tensor, " measured"]:
        chosen = super().choose(history)
        if not self.layer_boost:
            return chosen
        band, decided = self.largest(history)
        chosen = torch.where(decided & (band < self.lowest_third), 0.95 * chosen, chosen)
        boosted = torch.maximum(chosen, (1.05 * chosen).clamp_max(0.98))
        return torch.where(decided & (band >= self.highest_third), boosted, chosen)

    def raised(self, base: float, rise: float, cap: float) -> float:
        return max(base, super().raised(base, rise, cap))

    def lowered(self, base: float) -> float:
        return min(base, super().lowered(base))
