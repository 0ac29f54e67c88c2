"""Lookahead around another optimizer: k steps forward, part of the way back (arXiv:1907.08610)."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from famx.optim._wrapper import Wrapper
from famx.registry import register


@register
class Lookahead(Wrapper):
    """After every k steps of the base: slow <- slow + share·(θ - slow); θ <- slow.

    A parameter without a gradient in a k-th step waits for the next k-th step. Steps that the base
    skips count as steps.

    Args:
        params: an optimizer, or parameters or groups to build the base for.
        k: number of steps of the base per step of the slow weights.
        share: step size of the slow weights towards θ, in (0, 1] (alpha in the paper).
        options: `base`, `lr`, `momentum` and `spectrum` of `Wrapper`.
    """

    def __init__(
        self,
        params: ParamsT | torch.optim.Optimizer,
        *,
        k: int = 5,
        share: float = 0.5,
        **options: Any,
    ):
        if not isinstance(k, int) or k < 1 or not 0 < share <= 1:
            raise ValueError(f"k={k} must be an integer of at least 1, share={share} in (0, 1]")
        self.k = k
        self.share = share
        super().__init__(params, **options)

    def init_wrapper(self, param: Tensor) -> dict[str, Tensor]:
        return {"slow": param.detach().clone()}

    def before(self, params: list[Tensor]) -> None:
        # slow weights start at the parameters before their first step
        for p in params:
            if p not in self.wrapper_state:
                self.wrapper_state[p] = self.init_wrapper(p)

    def after(self, params: list[Tensor], stepped: float | Tensor) -> None:
        # steps are counted on the host, including skipped ones
        if self.calls % self.k:
            return
        for p in params:
            slow = self.wrapper_state[p]["slow"]
            # 0 or 1 as a tensor, which needs no device synchronization
            weight = p.new_ones(()).mul_(stepped)
            slow.lerp_(p, weight * self.share)
            p.lerp_(slow, weight)
