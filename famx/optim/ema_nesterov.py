"""EMA-Nesterov around another optimizer: looks ahead along an average of its own past steps (arXiv:2605.25395)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from famx.optim._wrapper import Wrapper
from famx.registry import register


@register
class EMANesterov(Wrapper):
    """θ <- A(y), y = θ + beta·m; m <- gamma·m + (1 - gamma)·(change of θ); A is the step of the base.

    Between steps the parameters are at y, for the gradient is taken there: at θ itself up to `start_step` and from
    `stop_step` on, where beta is 0.

    Args:
        params: an optimizer, or parameters or groups over which the base is built.
        momentum: factory of the rule that the base wears.
        spectrum: factory of what that rule measures with.
        base: name of the optimizer.
        lr: its learning rate; its usual one if not given.
        base_lr: another name of `lr`.
        beta: how far to look ahead, in average steps, in [0, 1); a steady step becomes 1 / (1 - beta) times as long;
            published trainings of language models take .5, and .7 with Adam.
        gamma: decay of the average, in [0, 1); they take .99 to .999, .99 with Adam.
        start_step: step after which to look ahead.
        stop_step: step that ends it; never if not given.
    """

    def __init__(
        self,
        params: Any,
        momentum: Callable[..., nn.Module] | None = None,
        spectrum: Callable[..., nn.Module] | None = None,
        *,
        base: str = "adamw",
        lr: float | None = None,
        base_lr: float | None = None,
        beta: float = 0.5,
        gamma: float = 0.99,
        start_step: int = 100,
        stop_step: int | None = None,
    ):
        if not 0 <= gamma < 1 or not 0 <= beta < 1:
            raise ValueError(f"gamma={gamma} and beta={beta} must be in [0, 1)")
        self.beta, self.gamma, self.start_step, self.stop_step = beta, gamma, start_step, stop_step
        super().__init__(params, momentum, spectrum, base=base, lr=base_lr if lr is None else lr)

    def before(self, params: list[Tensor]) -> None:
        self.starts = [p.detach().clone() for p in params]

    def after(self, params: list[Tensor], moved: float | Tensor) -> None:
        ahead = self.start_step < self.calls and (
            self.stop_step is None or self.calls < self.stop_step
        )
        for p, start in zip(params, self.starts, strict=True):
            if p not in self.kept:
                self.kept[p] = {"ema": torch.zeros_like(p), "beta": p.new_zeros(())}
            state, whole = self.kept[p], p.new_ones(()).mul_(moved)
            m, beta = state["ema"], state["beta"]
            m.lerp_(p - start + beta * m, whole * (1 - self.gamma))
            state["beta"] = torch.lerp(beta, torch.full_like(beta, self.beta * ahead), whole)
            p.add_(m * state["beta"] * whole)
        self.starts = []
