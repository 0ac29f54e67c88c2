"""FAM's rules as published: thresholds on shares, which white noise already exceeds (seed.md)."""

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
class FamPublished(FamRules):
    """The four handlers of FAM; a region fires when its share of the history exceeds .2 to .4, whatever its width.

    Args:
        spectrum: factory of what measures the gradients; `shuffled` where none is given.
        beta: decay of the history per step.
        start_step: step up to which the base momentum stays.
        min_size: entries a tensor must have more of to be measured.
    """

    def __init__(
        self,
        tensors: Sequence[TensorInfo],
        spectrum: Callable[..., nn.Module] | None = None,
        *,
        beta: float = 0.99,
        start_step: int = 100,
        min_size: int = 256,
    ):
        usual = partial(registry.build, "spectrum", {"name": "shuffled"})
        super().__init__(
            tensors, spectrum or usual, beta=beta, start_step=start_step, min_size=min_size
        )

    def over(self, power: Float[Tensor, "2 measured bands"]) -> Bool[Tensor, "2 measured"]:
        return power.sum(-1) > self.thresholds

    def largest(
        self, history: Float[Tensor, "measured bands"]
    ) -> tuple[Int[Tensor, "..."], Bool[Tensor, "..."]]:
        return history.argmax(1), torch.ones_like(self.by_largest)
