"""Momentum rules that decide by statistics of the last gradients in time."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from famx import registry
from famx.momentum.base import GradientWindow, HistoryRule
from famx.notation import TensorInfo

TINY = torch.finfo(torch.float32).tiny


class TemporalRule(HistoryRule):
    """Chooses by statistics of the coordinates and the window that spectrum `temporal` follows.

    h <- beta·h + (1 - beta)·statistics per step, from the first statistics on. A subclass defines
    the statistics (`measure`) and the coefficients that follow from them (`choose`).

    Args:
        tensors: the parameter tensors, in the order of the gradients.
        n_statistics: number of statistics of each tensor.
        beta: decay of the history per step, in [0, 1).
        start_step: number of first steps with the base momentum.
        min_size: number of entries that a tensor must exceed to be followed; smaller tensors keep
            their base momentum.
    """

    followed: GradientWindow

    def __init__(
        self,
        tensors: Sequence[TensorInfo],
        *,
        n_statistics: int,
        beta: float,
        start_step: int,
        min_size: int,
    ):
        super().__init__(tensors, beta=beta, start_step=start_step, min_size=min_size)
        # the spectrum stores the window of gradients
        followed = [tensors[row] for row in self.rows]
        self.followed = registry.build("spectrum", {"name": "temporal"}, tensors=followed)
        self.register_buffer("history", torch.zeros(n_statistics, len(self.rows)))

    def forward(self, gradients: Sequence[Tensor], step: int | Tensor) -> Float[Tensor, " tensors"]:
        """See `MomentumRule.forward`."""
        if not self.rows:
            return self.base
        # called for its window alone, not for its shares
        self.followed([gradients[row] for row in self.rows])
        # a 0-d tensor if steps are counted on the device; then every step computes the update
        due = self.followed.fresh & (step > self.start_step)
        if due is not False:
            # scaled, so that coordinates count equally, whatever the size of their gradients
            series = self.followed.ring.float()
            statistics = self.measure(series / series.abs().amax(0).clamp_min(TINY))
            self.update_history(due, statistics, self.followed.every)
        if self.observed:
            self.metrics = {"moved": self.changed_share()}
        return self.coefficients

    @abstractmethod
    def measure(
        self, series: Float[Tensor, "window followed coordinates"]
    ) -> Float[Tensor, "statistics followed"]:
        """Returns the statistics of the window."""
