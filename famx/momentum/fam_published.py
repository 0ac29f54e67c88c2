"""FAM's rules as published: thresholds on shares, which white noise already exceeds (seed.md)."""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from famx import registry
from famx.momentum._fam_rules import FamRules, Power
from famx.momentum.base import SpectrumFactory
from famx.notation import TensorInfo
from famx.registry import register


@register
class FamPublished(FamRules):
    """The four handlers of FAM; a region fires above a share of .2 to .4, whatever its width.

    Args:
        spectrum: factory of the spectrum that measures the gradients; `shuffled` when None.
        beta: decay of the history per step, in [0, 1).
        start_step: number of first steps with the base momentum.
        min_size: number of elements that a tensor must exceed to be measured.
    """

    def __init__(
        self,
        tensors: Sequence[TensorInfo],
        spectrum: SpectrumFactory | None = None,
        *,
        beta: float = 0.99,
        start_step: int = 100,
        min_size: int = 256,
    ):
        if spectrum is None:
            spectrum = partial(registry.build, "spectrum", {"name": "shuffled"})
        super().__init__(tensors, spectrum, beta=beta, start_step=start_step, min_size=min_size)

    def find_power(self, history: Float[Tensor, "measured bands"]) -> Power:
        """See `FamRules.find_power`; a largest band always exists."""
        first, second = (self.regions * history).sum(-1) > self.thresholds
        return Power(first, second, history.argmax(1), torch.ones_like(self.by_largest))
