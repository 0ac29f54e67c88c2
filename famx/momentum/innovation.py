"""The momentum at which what a gradient adds to its average is white (innovation whitening: Mehra 1970)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from famx.momentum.base import TemporalRule
from famx.notation import TensorInfo
from famx.registry import register

CANDIDATES = (0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98)
FIRST = 8  # an average of fewer gradients says little


@register
class Innovation(TemporalRule):
    """a of .6 to .98, for which |c(a)| is least, c(a) the lag-1 correlation of the innovations e_t = g_t - m_{t-1}
    beyond what white gradients give; m is the average of the window so far at momentum a, over the sum of its weights.

    It is lower than the base where c(base) is above chance, for the average lags; higher where it is below; else, as
    with white noise, it is the base.

    Args:
        beta: decay of the history of the correlations per step.
        start_step: step up to which the base momentum stays.
        min_size: entries a tensor must have more of to be followed.
        sigmas: deviations of chance in one measurement that c(base) must exceed.
    """

    def __init__(
        self,
        tensors: Sequence[TensorInfo],
        *,
        beta: float = 0.99,
        start_step: int = 100,
        min_size: int = 256,
        sigmas: float = 4.0,
    ):
        super().__init__(
            tensors,
            n_statistics=len(CANDIDATES),
            beta=beta,
            start_step=start_step,
            min_size=min_size,
        )
        window = self.followed.window
        if window < 2 * FIRST:
            raise ValueError(
                f"window={window} of the gradients followed must be at least {2 * FIRST}"
            )
        filters = torch.stack([_innovations(a, window) for a in CANDIDATES])
        covariance = filters @ filters.mT
        lagged, own = (
            covariance.diagonal(1, 1, 2).sum(1),
            covariance.diagonal(0, 1, 2)[:, 1:].sum(1),
        )
        self.sigmas = sigmas
        candidates, base = torch.tensor(CANDIDATES), self.base[self.rows]
        tables = {
            "filters": filters,
            "white": lagged / own,
            "nearest": (candidates[:, None] - base).abs().argmin(0),
            "candidates": candidates,
            "lower": candidates[:, None] < base,
            "higher": candidates[:, None] > base,
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def measure(
        self, series: Float[Tensor, "window followed coordinates"]
    ) -> Float[Tensor, "statistics followed"]:
        e = torch.einsum("ctw,wmk->ctmk", self.filters, series)
        lagged, own = (e[:, 1:] * e[:, :-1]).sum((1, 3)), e[:, 1:].square().sum((1, 3))
        return lagged / own.clamp_min(torch.finfo(torch.float32).tiny) - self.white[:, None]

    def choose(self, history: Float[Tensor, "statistics followed"]) -> Float[Tensor, " followed"]:
        base = self.base[self.index]
        now = history.gather(0, self.nearest[None])[0]
        allowed = torch.where(now > 0, self.lower, self.higher)
        best = torch.where(allowed, history.abs(), torch.inf).argmin(0)
        # the spectrum has half as many free values of each coordinate as it has bins
        alive = 2 * self.followed.freedom / (self.followed.window // 2 + 1)
        samples = alive.clamp_min(1) * (self.followed.window - FIRST)
        moves = (now.abs() > self.sigmas / samples.sqrt()) & allowed.any(0)
        return torch.where(moves, self.candidates[best], base)


def _innovations(a: float, window: int) -> Float[Tensor, "times window"]:
    """The matrix that takes gradients to their innovations, from time FIRST on."""
    t, s = torch.meshgrid(torch.arange(FIRST, window), torch.arange(window), indexing="ij")
    weights = torch.where(s < t, a ** (t - 1 - s).clamp_min(0), 0.0)
    return (s == t).float() - weights / weights.sum(1, keepdim=True)
