"""The optimizer probe: measures the effect of any optimizer on each tensor, outside its step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from famx import registry
from famx.monitoring.rule_record import rule_band_names, rule_metrics
from famx.nn.hooks import Observed
from famx.notation import Kind, TensorInfo

ProbeLevel = Literal["off", "light", "full"]

BANDS = 8  # the same for every tensor, so that kinds of tensors and optimizers can be compared
WINDOW = 32  # steps that a report is measured over
LAGS = 4
TINY = torch.finfo(torch.float32).tiny


@dataclass
class _PendingStep:
    """The state before a step of the window, to be compared with the state after it.

    Args:
        is_report: whether the step ends the window.
        sketch: coordinates of the weights, if they will be compared.
        weights: full copies of the weights, if these will be compared.
    """

    step: int
    is_report: bool
    grad_norms: Float[Tensor, " tensors"]
    sketch: Float[Tensor, "tensors coordinates"] | None
    weights: list[Tensor] | None


class OptimizerProbe:
    """Measures the `WINDOW` steps before each report, as one value or row of `metrics` per tensor.

    bands (tensors, 8): power over the steps in units of white noise.
    lag1 .. lag4, whiteness: see `correlations`.
    coefficient: the momentum that is set or that a rule chose.
    base, fired, rule_bands: the last decision of a momentum rule, see `rule_metrics`.
    momentum: the momentum that takes effect, see `effective_momentum`.
    update_to_weight: |θ' - θ| / |θ|. angle: between θ and θ', in radians.
    cosine: between the average of gradients and the gradient.
    gradient_norm: norm of the gradient before clipping.
    A value that is not defined, such as the cosine without an average, is NaN; `update_to_weight`
    is infinite for the first update of a weight of zeros.

    The probe copies nothing from the device, samples no random numbers, and neither creates nor
    changes state of the optimizer. Call `before_step` before each step of the optimizer, and
    `after_step` after it, before the gradients are cleared.

    Args:
        level: `light` reads only strided coordinates; `full` compares full tensors at reports.
        every: steps from one report to the next; a trainer sets its own interval.

    Attributes:
        band_names: metric -> names of the bands of each tensor, of the metrics that have bands.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        level: ProbeLevel,
        every: int = WINDOW,
    ):
        self.optimizer = optimizer
        self.level = level
        self.every = every

        # the tensors, in the order of the optimizer's groups
        name_by_id = {id(p): name for name, p in model.named_parameters()}
        self.params: list[nn.Parameter] = []
        self.names: list[str] = []
        self.kinds: list[Kind] = []
        for group in optimizer.param_groups:
            for p in group["params"]:
                self.params.append(p)
                self.names.append(name_by_id[id(p)])
                self.kinds.append(group.get("kind", "other"))

        # the window: gradients in the spectrum, averages of gradients here
        tensors = [
            TensorInfo(tuple(p.shape), kind, n_bands=BANDS)
            for p, kind in zip(self.params, self.kinds, strict=True)
        ]
        choice = {"name": "temporal", "window": WINDOW, "every": WINDOW}
        spectrum = registry.build("spectrum", choice, tensors=tensors)
        self.spectrum = spectrum.to(self.params[0].device)
        self.band_names = {
            "bands": [spectrum.band_names(info) for info in tensors],
            "rule_bands": rule_band_names(optimizer, len(tensors)),
        }
        self.averages = torch.zeros_like(self.spectrum.ring, dtype=torch.float32)
        self.last_step = 0
        self.n_steps = 0  # consecutive steps up to the last

        self.metrics: dict[str, Tensor] = {}
        self._pending: _PendingStep | None = None

    def before_step(self, step: int, grad_norms: Float[Tensor, " tensors"]) -> None:
        """Measures the weights before the optimizer's step number `step`, and clears `metrics`.

        Args:
            grad_norms: norms of the gradients before clipping, in the order of the parameters.
        """
        self.metrics = {}
        self._pending = None
        # only the last steps before a report are measured
        steps_to_report = -step % self.every
        if steps_to_report >= WINDOW:
            return
        is_report = steps_to_report == 0
        # the update stands for the average of gradients if the optimizer has none
        needs_update = any(average is None for average in self._optimizer_averages())
        sketch = self._sketch_weights() if is_report or needs_update else None
        weights = None
        if is_report and self.level == "full":
            weights = [p.detach().clone() for p in self.params]
        self._pending = _PendingStep(step, is_report, grad_norms, sketch, weights)

    def after_step(self) -> None:
        """Adds the optimizer's step to the window, and fills `metrics` where a report is due."""
        pending = self._pending
        self._pending = None  # frees the copies of the weights
        if pending is None:
            return
        averages = self._optimizer_averages()
        self._append(pending, averages)
        if pending.is_report and self.n_steps >= WINDOW:
            self._measure(pending, averages)

    def state_dict(self) -> dict[str, Any]:
        """Returns the window, over which the next report is measured."""
        return {
            "spectrum": dict(self.spectrum.state_dict()),
            "averages": self.averages,
            "last_step": self.last_step,
            "n_steps": self.n_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the window of a `state_dict`."""
        self.spectrum.load_state_dict(state["spectrum"])
        self.averages = state["averages"].to(self.averages.device)
        self.last_step = state["last_step"]
        self.n_steps = state["n_steps"]

    def _append(self, pending: _PendingStep, averages: list[Tensor | None]) -> None:
        """Adds the gradients and the averages of a step to the window."""
        # a window consists of consecutive steps
        follows = pending.step == self.last_step + 1
        self.n_steps = self.n_steps + 1 if follows else 1
        self.last_step = pending.step

        # gradients are stored by the spectrum, averages here
        self.spectrum(self._gradients())
        row = self.spectrum.sketch(_or_zeros(averages, self.params)).float()
        missing = [average is None for average in averages]
        if pending.sketch is not None and any(missing):
            updates = self._sketch_weights() - pending.sketch
            row = torch.where(torch.tensor(missing)[:, None].to(row.device), updates, row)
        self.averages = torch.cat([self.averages[1:], row[None]])

    def _measure(self, pending: _PendingStep, averages: list[Tensor | None]) -> None:
        """Fills `metrics` from the window and from the weights before and after its last step."""
        # the last step, on full tensors or their sketches
        assert pending.sketch is not None, "every report compares weights"
        if pending.weights is not None:
            new_weights = [p.detach() for p in self.params]
            comparison = compare_step(
                pending.weights, new_weights, _or_zeros(averages, self.params), self._gradients()
            )
        else:
            comparison = compare_step(
                list(pending.sketch),
                list(self._sketch_weights()),
                list(self.averages[-1]),
                list(self.spectrum.ring[-1].float()),
            )

        # the window
        gradients = self.spectrum.ring.float()
        lags, whiteness = correlations(gradients)
        self.metrics = comparison | {f"lag{k}": lag for k, lag in enumerate(lags, 1)}
        self.metrics["bands"] = self.spectrum.relative(self.spectrum.measure())
        self.metrics["whiteness"] = whiteness
        coefficients = self._coefficients()
        self.metrics["coefficient"] = coefficients
        self.metrics |= rule_metrics(self.optimizer, coefficients)
        self.metrics["momentum"] = effective_momentum(self.averages, gradients)

        # the cosine of an update that stands for an average would mean something else
        has_average = torch.tensor([average is not None for average in averages])
        has_average = has_average.to(pending.grad_norms.device)
        self.metrics["cosine"] = torch.where(has_average, comparison["cosine"], torch.nan)
        self.metrics["gradient_norm"] = pending.grad_norms

    def _coefficients(self) -> Float[Tensor, " tensors"]:
        """Returns the momentum of each tensor, from its rule or its group; NaN if it has none."""
        # the choice of a momentum rule, in the order of the parameters
        if isinstance(self.optimizer, Observed):
            coefficients = self.optimizer.metrics.get("momentum")
            if coefficients is not None and coefficients.shape == (len(self.params),):
                return coefficients
        # else the setting of each group
        settings: list[float] = []
        for group in self.optimizer.param_groups:
            betas = group.get("betas", [group.get("momentum", torch.nan)])
            settings += [float(betas[0])] * len(group["params"])
        return torch.tensor(settings)

    def _optimizer_averages(self) -> list[Tensor | None]:
        """Returns the optimizer's average of gradients of each tensor, None if it has none."""
        states = [self.optimizer.state.get(p, {}) for p in self.params]
        return [state.get("exp_avg", state.get("momentum_buffer")) for state in states]

    def _gradients(self) -> list[Tensor]:
        return _or_zeros([p.grad for p in self.params], self.params)

    def _sketch_weights(self) -> Float[Tensor, "tensors coordinates"]:
        return self.spectrum.sketch([p.detach() for p in self.params]).float()


def compare_step(
    old_weights: list[Tensor],
    new_weights: list[Tensor],
    averages: list[Tensor],
    gradients: list[Tensor],
) -> dict[str, Float[Tensor, " tensors"]]:
    """Compares weights before and after a step, and averages of gradients with the gradients.

    Returns:
        `update_to_weight`, `angle` (of the weights) and `cosine` (of average and gradient).
    """
    # in fp32, whatever the precision of the weights
    old_weights = [x.float() for x in old_weights]
    new_weights = [x.float() for x in new_weights]
    averages = [x.float() for x in averages]
    gradients = [x.float() for x in gradients]
    updates = torch._foreach_sub(new_weights, old_weights)
    # unit vectors at an angle a are 2 sin(a/2) apart, which is exact for small angles
    distance = _distance_of_directions(new_weights, old_weights)
    return {
        "update_to_weight": _norms(updates) / _norms(old_weights),
        "angle": 2 * torch.asin((distance / 2).clamp(max=1)),
        "cosine": 1 - _distance_of_directions(averages, gradients).square() / 2,
    }


def correlations(
    series: Float[Tensor, "steps tensors coordinates"],
) -> tuple[Float[Tensor, "lags tensors"], Float[Tensor, " tensors"]]:
    """Returns autocorrelations r_1 .. r_4 over the steps, and the p-value of the Ljung-Box test.

    r_k is the mean over coordinates of sum_t x_t·x_(t+k) / sum_t x_t²; the mean of x is not
    subtracted, since momentum accumulates it like any slow signal. The null hypothesis is no
    correlation: then Q = n·L·(L + 2)·sum_k r_k² / (L - k) over L steps is chi-square with 4 degrees
    of freedom, and p is uniform. The elements of one gradient are correlated with each other, so n
    is the number of independent ones among c coordinates, c / (1 + (c - 1)·ρ²), with ρ² their mean
    squared correlation beyond chance.
    """
    # unit vectors over time, scaled first so that squares do not underflow
    steps = len(series)
    largest = series.abs().amax(0)
    unit = series / largest.clamp_min(TINY)
    unit = unit / unit.norm(dim=0).clamp_min(TINY)
    count = (largest > 0).sum(-1)
    lags = torch.stack([(unit[k:] * unit[:-k]).sum((0, 2)) / count for k in range(1, LAGS + 1)])

    # independent coordinates
    products = torch.einsum("ltc,ltd->tcd", unit, unit).square().sum((1, 2))
    squared_mean = (products - count) / (count * (count - 1)).clamp_min(1)
    beyond_chance = ((squared_mean - 1 / steps) / (1 - 1 / steps)).clamp(0, 1)
    independent = count / (1 + (count - 1) * beyond_chance)

    # P(Q > q) of chi-square with 4 degrees of freedom is exp(-q/2)·(1 + q/2)
    weights = steps * (steps + 2) / (steps - torch.arange(1.0, LAGS + 1, device=series.device))
    half = independent * (weights[:, None] * lags.square()).sum(0) / 2
    return lags, torch.exp(-half) * (1 + half)


def effective_momentum(
    averages: Float[Tensor, "steps tensors coordinates"],
    gradients: Float[Tensor, "steps tensors coordinates"],
) -> Float[Tensor, " tensors"]:
    """Fits m_t = a·m_(t-1) + b·g_t over the steps by least squares and returns a.

    Each coordinate has its own b, while a is the same for all coordinates of a tensor. The fit is
    exact for every average of gradients, whatever weight it gives the new gradient. For updates, a
    is their equivalent momentum, and a preconditioner is part of b.
    """
    # scaled, so that squares do not underflow
    scaled = averages / averages.abs().amax(0).clamp_min(TINY)
    g = gradients[1:] / gradients.abs().amax(0).clamp_min(TINY)
    unit = g / g.norm(dim=0).clamp_min(TINY)

    # b of each coordinate is eliminated by a projection along its gradient
    def without_gradient(
        m: Float[Tensor, "steps_1 tensors coordinates"],
    ) -> Float[Tensor, "steps_1 tensors coordinates"]:
        return m - unit * (unit * m).sum(0)

    current = without_gradient(scaled[1:])
    previous = without_gradient(scaled[:-1])
    return (current * previous).sum((0, 2)) / previous.square().sum((0, 2))


def _or_zeros(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Returns the tensors, with zeros of the shape of `like` in place of None."""
    detached = []
    for tensor, p in zip(tensors, like, strict=True):
        zeros = p.new_zeros(()).expand(p.shape)
        detached.append(zeros if tensor is None else tensor.detach())
    return detached


def _norms(tensors: list[Tensor] | tuple[Tensor, ...]) -> Float[Tensor, " tensors"]:
    return torch.stack(torch._foreach_norm(tensors))


def _distance_of_directions(first: list[Tensor], second: list[Tensor]) -> Float[Tensor, " tensors"]:
    """Returns the distance between the unit vectors of each pair of tensors."""
    first_units = torch._foreach_div(first, list(_norms(first)))
    second_units = torch._foreach_div(second, list(_norms(second)))
    return _norms(torch._foreach_sub(first_units, second_units))
