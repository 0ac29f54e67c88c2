"""Averages of a model's weights over the steps of a run, which are evaluated in their place."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import PARAM_LIST, AveragedModel, get_ema_multi_avg_fn

from famx.training.trainer_config import TrainerConfig


class AveragedWeights(AveragedModel):
    """A copy of a model whose weights m are an average of the weights w after each step.

    With `decay` d, m <- d m + (1 - d) w from the first step on. With `tail` f, m is the mean over
    the last steps, those after 1 - f of all (arXiv:1803.05407). Before them it is empty; and if the
    number of steps grows so much that they begin later, it is empty again. Buffers are those of the
    model.

    Args:
        decay: d, in [0, 1); 0 for a mean.
        tail: f, in [0, 1]; 0 for all steps.
    """

    n_averaged: Tensor  # number of steps in the average, on the CPU

    def __init__(self, model: nn.Module, decay: float, tail: float):
        rule = get_ema_multi_avg_fn(decay) if decay else self._add_to_mean
        super().__init__(model, multi_avg_fn=rule)
        self.tail = tail

    @property
    def is_empty(self) -> bool:
        """Whether no step is in the average, so that its weights mean nothing."""
        return int(self.n_averaged) == 0

    def add(self, model: nn.Module, step: int, total_steps: int | None) -> None:
        """Adds the weights of a model after a step.

        Args:
            total_steps: number of steps of the run, None if it is not known yet.
        """
        if self.tail and (total_steps is None or total_steps - step >= self.tail * total_steps):
            self.n_averaged.zero_()
            # buffers are those of the model, as `update_parameters` does
            for buffer, source in zip(self.module.buffers(), model.buffers(), strict=True):
                buffer.copy_(source)
        else:
            self.update_parameters(model)

    def _add_to_mean(self, means: PARAM_LIST, weights: PARAM_LIST, _: Tensor | int) -> None:
        # unlike torch's rule, reads no count from a GPU
        with torch.no_grad():
            torch._foreach_lerp_(means, weights, 1 / (int(self.n_averaged) + 1))


def build_average(model: nn.Module, config: TrainerConfig) -> AveragedWeights | None:
    """Builds the average that the options `ema` or `tail_average` ask for, None without them."""
    if not config.ema and not config.tail:
        return None
    return AveragedWeights(model, config.ema, config.tail)
