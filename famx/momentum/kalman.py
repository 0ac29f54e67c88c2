"""The momentum of a steady Kalman filter for a gradient that drifts under noise (Muth 1960)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from famx.momentum._temporal_rule import TemporalRule
from famx.notation import TensorInfo
from famx.registry import register


@register
class Kalman(TemporalRule):
    """a = 1 - K, K = (sqrt(q² + 4q) - q) / 2, q = (Var d + 2·Cov) / (-Cov), within low and high.

    d_t = g_t - g_{t-1}, and Cov = Cov(d_t, d_{t-1}) is minus the variance of the noise; q is the
    ratio of the variance of the drift to that of the noise (Kalman 1960). White noise does not
    drift, so its coefficient is `high`. A gradient whose differences do not alternate in sign has
    no noise, so its coefficient is `low`.

    Args:
        beta: decay of the history of both moments per step, in [0, 1).
        start_step: number of first steps with the base momentum.
        min_size: number of elements that a tensor must exceed to be followed.
        low: smallest coefficient, in [0, 1).
        high: largest coefficient, in [low, 1).
    """

    def __init__(
        self,
        tensors: Sequence[TensorInfo],
        *,
        beta: float = 0.99,
        start_step: int = 100,
        min_size: int = 256,
        low: float = 0.5,
        high: float = 0.98,
    ):
        if not 0 <= low <= high < 1:
            raise ValueError(f"low={low} and high={high} must satisfy 0 <= low <= high < 1")
        super().__init__(
            tensors, n_statistics=2, beta=beta, start_step=start_step, min_size=min_size
        )
        self.low = low
        self.high = high

    def measure(
        self, series: Float[Tensor, "window followed coordinates"]
    ) -> Float[Tensor, "statistics followed"]:
        """Returns the variance and the lag-1 covariance of the differences."""
        d = series.diff(dim=0)
        return torch.stack([d.square().mean((0, 2)), (d[1:] * d[:-1]).mean((0, 2))])

    def choose(self, history: Float[Tensor, "statistics followed"]) -> Float[Tensor, " followed"]:
        """See `HistoryRule.choose`."""
        variance, covariance = history
        noise = (-covariance).clamp_min(1e-12)
        q = ((variance - 2 * noise) / noise).clamp_min(0.0)
        # equal to K in the docstring, without its difference of two large numbers
        gain = 2 / (1 + (1 + 4 / q).sqrt())
        return (1 - gain).clamp(self.low, self.high)
