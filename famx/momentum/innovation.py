"""The momentum at which innovations, gradient minus previous average, are white (Mehra 1970)."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from famx.momentum._temporal_rule import TINY, TemporalRule
from famx.notation import TensorInfo
from famx.registry import register

CANDIDATES = (0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98)
MIN_AVERAGED = 8  # gradients; an average of fewer is too noisy


@register
class Innovation(TemporalRule):
    """a from .6 to .98 with the smallest |c(a)|, the lag-1 correlation of the innovations.

    The innovations are e_t = g_t - m_{t-1}, where m is the average of the window so far at momentum
    a, divided by the sum of its weights. c(a) is their correlation minus that of white gradients
    (innovation whitening: Mehra 1970).
    If c(base) is significantly above 0, the average lags, and a is less than the base. If c(base)
    is significantly below 0, a is greater. Otherwise, as on white noise, a is the base.

    Args:
        beta: decay of the history of the correlations per step, in [0, 1).
        start_step: number of first steps with the base momentum.
        min_size: number of elements that a tensor must exceed to be followed.
        sigmas: significance limit of |c(base)|, in standard deviations of one measurement.
    """

    filters: Float[Tensor, "candidates times window"]
    white: Float[Tensor, " candidates"]
    nearest: Int[Tensor, " followed"]
    candidates: Float[Tensor, " candidates"]
    lower: Bool[Tensor, "candidates followed"]
    higher: Bool[Tensor, "candidates followed"]

    def __init__(
        self,
        tensors: Sequence[TensorInfo],
        *,
        beta: float = 0.99,
        start_step: int = 100,
        min_size: int = 256,
        sigmas: float = 4.0,
    ):
        n = len(CANDIDATES)
        super().__init__(
            tensors, n_statistics=n, beta=beta, start_step=start_step, min_size=min_size
        )
        self.sigmas = sigmas
        window = self.followed.window
        if window < 2 * MIN_AVERAGED:
            raise ValueError(
                f"window={window} of the followed gradients must be at least {2 * MIN_AVERAGED}"
            )
        # the lag-1 correlation of innovations of white gradients, from their covariance
        filters = torch.stack([_innovation_matrix(a, window) for a in CANDIDATES])
        covariance = filters @ filters.mT
        lagged = covariance.diagonal(1, 1, 2).sum(1)
        variance = covariance.diagonal(0, 1, 2)[:, 1:].sum(1)
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("white", lagged / variance, persistent=False)
        # comparison of each candidate with the base of each tensor
        candidates = torch.tensor(CANDIDATES)
        base = self.base[self.rows]
        nearest = (candidates[:, None] - base).abs().argmin(0)
        self.register_buffer("nearest", nearest, persistent=False)
        self.register_buffer("candidates", candidates, persistent=False)
        self.register_buffer("lower", candidates[:, None] < base, persistent=False)
        self.register_buffer("higher", candidates[:, None] > base, persistent=False)

    def measure(
        self, series: Float[Tensor, "window followed coordinates"]
    ) -> Float[Tensor, "statistics followed"]:
        """Returns c(a) of each candidate a."""
        e = torch.einsum("ctw,wmk->ctmk", self.filters, series)
        lagged = (e[:, 1:] * e[:, :-1]).sum((1, 3))
        variance = e[:, 1:].square().sum((1, 3))
        return lagged / variance.clamp_min(TINY) - self.white[:, None]

    def choose(self, history: Float[Tensor, "statistics followed"]) -> Float[Tensor, " followed"]:
        """See `HistoryRule.choose`."""
        base = self.base[self.index]
        current = history.gather(0, self.nearest[None])[0]
        # the candidate with the smallest |c|, on the side of the base that c(base) indicates
        allowed = torch.where(current > 0, self.lower, self.higher)
        best = torch.where(allowed, history.abs(), torch.inf).argmin(0)
        # by chance a correlation has the standard deviation 1 / sqrt(samples); for each coordinate
        # the spectrum has half as many independent values as bins
        n_bins = self.followed.window // 2 + 1
        coordinates = 2 * self.followed.degrees_of_freedom() / n_bins
        samples = coordinates.clamp_min(1) * (self.followed.window - MIN_AVERAGED)
        moves = (current.abs() > self.sigmas / samples.sqrt()) & allowed.any(0)
        return torch.where(moves, self.candidates[best], base)


def _innovation_matrix(a: float, window: int) -> Float[Tensor, "times window"]:
    """Returns the matrix that maps gradients to their innovations, from time MIN_AVERAGED on."""
    # row t: g_t minus the weighted mean of the gradients before t
    t, s = torch.meshgrid(torch.arange(MIN_AVERAGED, window), torch.arange(window), indexing="ij")
    weights = torch.where(s < t, a ** (t - 1 - s).clamp_min(0), 0.0)
    return (s == t).float() - weights / weights.sum(1, keepdim=True)
