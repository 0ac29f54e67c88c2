"""EMA-Nesterov around another optimizer: looks ahead along an average step (arXiv:2605.25395)."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from famx.optim._wrapper import Wrapper
from famx.registry import register


@register
class EMANesterov(Wrapper):
    """θ <- A(y), y = θ + beta·m; m <- gamma·m + (1 - gamma)·(change of θ), A the base's step.

    Between steps the parameters hold y, where the gradient is computed. Up to `start_step` and from
    `stop_step` on, beta is 0 and they hold θ.

    Args:
        params: an optimizer, or parameters or groups to build the base for.
        beta: distance to look ahead, in units of the average step, in [0, 1); constant steps become
            1 / (1 - beta) times as long. Published trainings of language models use .5, and .7
            with Adam.
        gamma: decay of the average, in [0, 1); the same trainings use .99 to .999, .99 with Adam.
        start_step: step after which to look ahead.
        stop_step: first step without looking ahead; None for no end.
        options: `base`, `lr`, `momentum` and `spectrum` of `Wrapper`.
    """

    def __init__(
        self,
        params: ParamsT | torch.optim.Optimizer,
        *,
        beta: float = 0.5,
        gamma: float = 0.99,
        start_step: int = 100,
        stop_step: int | None = None,
        **options: Any,
    ):
        if not 0 <= gamma < 1 or not 0 <= beta < 1:
            raise ValueError(f"gamma={gamma} and beta={beta} must be in [0, 1)")
        self.beta = beta
        self.gamma = gamma
        self.start_step = start_step
        self.stop_step = stop_step
        super().__init__(params, **options)

    def init_wrapper(self, param: Tensor) -> dict[str, Tensor]:
        return {"ema": torch.zeros_like(param), "beta": param.new_zeros(())}

    def before(self, params: list[Tensor]) -> None:
        # parameters before the base's step, to measure its change
        self.starts = [p.detach().clone() for p in params]

    def after(self, params: list[Tensor], stepped: float | Tensor) -> None:
        # beta of the next point at which the gradient is computed
        is_started = self.start_step < self.calls
        is_stopped = self.stop_step is not None and self.calls >= self.stop_step
        next_beta = self.beta * (is_started and not is_stopped)
        for p, start in zip(params, self.starts, strict=True):
            if p not in self.wrapper_state:
                self.wrapper_state[p] = self.init_wrapper(p)
            state = self.wrapper_state[p]
            m = state["ema"]
            beta = state["beta"]
            # 0 or 1 as a tensor, which needs no device synchronization
            weight = p.new_ones(()).mul_(stepped)
            m.lerp_(p - start + beta * m, weight * (1 - self.gamma))
            # from θ to the new y; a skipped step changes nothing
            state["beta"] = torch.lerp(beta, torch.full_like(beta, next_beta), weight)
            p.add_(m * state["beta"] * weight)
        self.starts = []
