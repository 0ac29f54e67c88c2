"""FAM's moves dealt to the wrong tensors: the placebo, as lively as FAM and as blind as chance (seed.md)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from famx.momentum.fam import Fam
from famx.notation import TensorInfo
from famx.registry import register


@register
class ShuffledFam(Fam):
    """a_i = base_i + (FAM's a_j - base_j), j another measured tensor than i, up to max(base_i, .98).

    Args:
        spectrum: factory of what measures the gradients; `temporal` where none is given.
        seed: of the deal, in which every tensor's move goes to another one.
        options: FAM's.
    """

    def __init__(
        self,
        tensors: Sequence[TensorInfo],
        spectrum: Callable[..., nn.Module] | None = None,
        *,
        seed: int = 0,
        **options: Any,
    ):
        super().__init__(tensors, spectrum, **options)
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(seed))
        dealt = torch.empty_like(order).index_copy(0, order, order.roll(1))
        self.register_buffer("dealt", dealt, persistent=False)

    def choose(self, history: Float[Tensor, "measured bands"]) -> Float[Tensor, " measured"]:
        base = self.base[self.index]
        moves = super().choose(history) - base
        return torch.minimum(base + moves[self.dealt], base.clamp_min(0.98)).clamp_min(0.0)
