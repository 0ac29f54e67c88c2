"""What gradients, weights and averages do under any optimizer, tensor by tensor, seen from beside its step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from famx import registry
from famx.notation import TensorInfo

ProbeLevel = Literal["off", "light", "full"]

BANDS = 8  # the same for every tensor, so that kinds and optimizers can lie side by side
WINDOW = 32
LAGS = 4
TINY = torch.finfo(torch.float32).tiny


class OptimizerProbe:
    """Looks at the `WINDOW` steps before each report and keeps what it saw in `metrics`, one value a tensor.

    bands (tensors, 8): temporal power in units of white noise. lag1 .. lag4, whiteness: see `correlations`.
    coefficient: the momentum that is set or chosen; momentum: the one that takes effect, see `effective_momentum`.
    update_to_weight: |θ' - θ| / |θ|. angle: between θ and θ', in radians. cosine: of the average and the gradient.
    gradient_norm: before clipping. A value that is not defined, such as the cosine without an average, is NaN; the
    first update of a weight of zeros is infinite.

    Nothing is read from the device, nothing is drawn, no state of the optimizer is made or touched.

    Args:
        watch: `light` reads strided coordinates alone; `full` compares whole tensors at reports.
        every: steps from one report to the next.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, watch: ProbeLevel, every: int
    ):
        self.optimizer, self.full, self.every = optimizer, watch == "full", every
        owned = [(p, group) for group in optimizer.param_groups for p in group["params"]]
        names = {id(p): name for name, p in model.named_parameters()}
        self.params = [p for p, _ in owned]
        self.names = [names[id(p)] for p in self.params]
        self.kinds = [group.get("kind", "other") for _, group in owned]
        tensors = [
            TensorInfo(tuple(p.shape), kind, n_bands=BANDS)
            for p, kind in zip(self.params, self.kinds, strict=True)
        ]
        chosen = {"name": "temporal", "window": WINDOW, "every": WINDOW}
        self.spectrum = registry.build("spectrum", chosen, tensors=tensors).to(
            self.params[0].device
        )
        self.memory = torch.zeros_like(self.spectrum.ring, dtype=torch.float32)
        self.last = self.filled = 0
        self.metrics: dict[str, Tensor] = {}

    @contextmanager
    def around(self, step: int, norms: Float[Tensor, " tensors"]) -> Iterator[None]:
        """Watches what happens inside: the optimizer's step number `step`, the gradients still there after it.

        Args:
            norms: of the gradients before clipping, in the order of the optimizer's parameters.
        """
        self.metrics = {}
        if -step % self.every >= WINDOW:
            yield
            return
        due = step % self.every == 0
        before = self._weights() if due or not all(map(torch.is_tensor, self._averages())) else None
        whole = [p.detach().clone() for p in self.params] if due and self.full else None
        yield
        averages = self._averages()
        self._remember(step, averages, before)
        if due and self.filled >= WINDOW:
            if whole:
                gradients, after = self._gradients(), [p.detach() for p in self.params]
                seen = compare(whole, after, _or_zeros(averages, self.params), gradients)
            else:
                memory, gradients = self.memory[-1], self.spectrum.ring[-1].float()
                seen = compare(
                    *(list(rows) for rows in (before, self._weights(), memory, gradients))
                )
            self._show(seen, averages, norms)

    def _remember(self, step: int, averages: list[Tensor | None], before: Tensor | None) -> None:
        """Adds a step to the window. Where there is no average, the update stands for it."""
        self.filled = self.filled + 1 if step == self.last + 1 else 1
        self.last = step
        self.spectrum(self._gradients())
        row = self.spectrum.sketch(_or_zeros(averages, self.params)).float()
        missing = [average is None for average in averages]
        if any(missing):
            updates = self._weights() - before
            row = torch.where(torch.tensor(missing)[:, None].to(row.device), updates, row)
        self.memory = torch.cat([self.memory[1:], row[None]])

    def _show(self, seen: dict[str, Tensor], averages: list[Tensor | None], norms: Tensor) -> None:
        series = self.spectrum.ring.float()
        lags, whiteness = correlations(series)
        self.metrics = seen | {f"lag{k}": lag for k, lag in enumerate(lags, 1)}
        averaged = torch.tensor([average is not None for average in averages]).to(norms.device)
        self.metrics |= {
            "bands": self.spectrum.relative(self.spectrum.measure()),
            "whiteness": whiteness,
            "coefficient": self._coefficients(),
            "momentum": effective_momentum(self.memory, series),
            "cosine": torch.where(averaged, seen["cosine"], torch.nan),
            "gradient_norm": norms,
        }

    def _coefficients(self) -> Float[Tensor, " tensors"]:
        """The momentum of each tensor, as its rule chose it or its group sets it; NaN where there is none."""
        chosen = getattr(self.optimizer, "metrics", {}).get("momentum")
        if chosen is not None and chosen.shape == (len(self.params),):
            return chosen
        groups = self.optimizer.param_groups
        set_to = [
            group["betas"][0] if "betas" in group else group.get("momentum", torch.nan)
            for group in groups
        ]
        return torch.tensor(
            [float(a) for a, group in zip(set_to, groups, strict=True) for _ in group["params"]]
        )

    def _averages(self) -> list[Tensor | None]:
        """The average of gradients that the optimizer keeps of each parameter, where it keeps one."""
        states = [self.optimizer.state.get(p, {}) for p in self.params]
        return [state.get("exp_avg", state.get("momentum_buffer")) for state in states]

    def _gradients(self) -> list[Tensor]:
        return _or_zeros([p.grad for p in self.params], self.params)

    def _weights(self) -> Float[Tensor, "tensors coordinates"]:
        return self.spectrum.sketch([p.detach() for p in self.params]).float()

    def state_dict(self) -> dict[str, Any]:
        """What the next report needs to know of the steps before it."""
        window = {"memory": self.memory, "last": self.last, "filled": self.filled}
        return {"spectrum": dict(self.spectrum.state_dict()), **window}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.spectrum.load_state_dict(state["spectrum"])
        self.memory = state["memory"].to(self.memory.device)
        self.last, self.filled = state["last"], state["filled"]


def compare(
    before: list[Tensor], after: list[Tensor], averages: list[Tensor], gradients: list[Tensor]
) -> dict[str, Float[Tensor, " tensors"]]:
    """The update over the weight, the angle between weights, the cosine of average and gradient, of each tensor."""
    before, after, averages, gradients = (
        [x.float() for x in xs] for xs in (before, after, averages, gradients)
    )
    return {
        "update_to_weight": _norms(torch._foreach_sub(after, before)) / _norms(before),
        "angle": 2 * torch.asin((_apart(after, before) / 2).clamp(max=1)),
        "cosine": 1 - _apart(averages, gradients).square() / 2,
    }


def correlations(
    series: Float[Tensor, "steps tensors coordinates"],
) -> tuple[Float[Tensor, "lags tensors"], Float[Tensor, " tensors"]]:
    """Autocorrelations r_1 .. r_4 in time, and the p-value of Ljung and Box's test that there are none.

    r_k is the mean over coordinates of sum_t x_t·x_(t+k) / sum_t x_t²; the mean of x is not taken off, since momentum
    adds it up like any slow signal. Q = n·L·(L + 2)·sum_k r_k² / (L - k) of L steps is chi-square of 4 degrees where
    there is no correlation; p is then uniform. The entries of one gradient move together, so n is the number of
    independent coordinates, c / (1 + (c - 1)·ρ²), with ρ² their mean squared correlation beyond chance.
    """
    steps, largest = len(series), series.abs().amax(0)
    unit = series / largest.clamp_min(TINY)
    unit = unit / unit.norm(dim=0).clamp_min(TINY)
    count = (largest > 0).sum(-1)
    lags = torch.stack([(unit[k:] * unit[:-k]).sum((0, 2)) / count for k in range(1, LAGS + 1)])
    together = torch.einsum("ltc,ltd->tcd", unit, unit).square().sum((1, 2))
    pairs = (together - count) / (count * (count - 1)).clamp_min(1)
    squared = ((pairs - 1 / steps) / (1 - 1 / steps)).clamp(0, 1)
    independent = count / (1 + (count - 1) * squared)
    weights = steps * (steps + 2) / (steps - torch.arange(1.0, LAGS + 1, device=series.device))
    half = independent * (weights[:, None] * lags.square()).sum(0) / 2
    return lags, torch.exp(-half) * (1 + half)


def effective_momentum(
    memory: Float[Tensor, "steps tensors coordinates"],
    gradients: Float[Tensor, "steps tensors coordinates"],
) -> Float[Tensor, " tensors"]:
    """The least-squares a of m_t = a·m_(t-1) + b·g_t over time, with b free for each coordinate and a shared by all.

    Exact for every average of gradients, whatever weight it gives the new one; of updates it is what momentum
    amounts to, a preconditioner being part of b.
    """
    scaled = memory / memory.abs().amax(0).clamp_min(TINY)
    g = gradients[1:] / gradients.abs().amax(0).clamp_min(TINY)
    unit = g / g.norm(dim=0).clamp_min(TINY)
    now, then = (m - unit * (unit * m).sum(0) for m in (scaled[1:], scaled[:-1]))
    return (now * then).sum((0, 2)) / then.square().sum((0, 2))


def _or_zeros(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    return [
        p.new_zeros(()).expand(p.shape) if t is None else t.detach()
        for t, p in zip(tensors, like, strict=True)
    ]


def _norms(tensors: Sequence[Tensor]) -> Float[Tensor, " tensors"]:
    return torch.stack(torch._foreach_norm(tensors))


def _apart(one: Sequence[Tensor], other: Sequence[Tensor]) -> Float[Tensor, " tensors"]:
    """Distance of the unit vectors."""
    units = [torch._foreach_div(x, list(_norms(x))) for x in (one, other)]
    return _norms(torch._foreach_sub(*units))
