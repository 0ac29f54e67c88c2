"""FAM's momentum changes applied to other tensors: a placebo with equal effect sizes (seed.md)."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from famx.momentum.base import SpectrumFactory
from famx.momentum.fam import Fam
from famx.notation import TensorInfo
from famx.registry import register


@register
class ShuffledFam(Fam):
    """a_i = base_i + (FAM's a_j - base_j), from 0 to max(base_i, .98).

    j is another measured tensor than i.

    Args:
        spectrum: factory of the spectrum that measures the gradients; `temporal` when None.
        seed: seed of the permutation, in which no tensor gets its own change.
        options: options of `Fam`.
    """

    source: Int[Tensor, " measured"]

    def __init__(
        self,
        tensors: Sequence[TensorInfo],
        spectrum: SpectrumFactory | None = None,
        *,
        seed: int = 0,
        **options: Any,
    ):
        super().__init__(tensors, spectrum, **options)
        # a random cycle: each tensor gets the change of the one before it
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(seed))
        source = torch.empty_like(order).index_copy(0, order, order.roll(1))
        self.register_buffer("source", source, persistent=False)

    def choose(self, history: Float[Tensor, "measured bands"]) -> Float[Tensor, " measured"]:
        """See `HistoryRule.choose`."""
        # added to the base of tensor i, within the bounds of FAM and of a coefficient
        base = self.base[self.index]
        changes = super().choose(history) - base
        return torch.minimum(base + changes[self.source], base.clamp_min(0.98)).clamp_min(0.0)
