"""MaxFactor: Adafactor scaled by its largest row; steps are sign times row maximum (seed.md)."""

from collections.abc import Mapping, Sequence
from math import prod
from operator import mul
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.optimizer import ParamsT

from famx.optim._kernels import TINY, average, clamp_min, descend, norms_of, scalars
from famx.optim._maxfactor import has_kernels, step_by_kernels
from famx.optim._rules import Factory
from famx.optim._state import all_params
from famx.optim.base import Group, GroupUpdate, Optimizer, Update
from famx.registry import register

Magnitude = Literal["row", "max", "median"]
Scalars = Sequence[float | Tensor]

LARGEST = torch.finfo(torch.float32).max


@runtime_checkable
class FollowsTensors(Protocol):
    """A momentum rule that lists the indices of the tensors that it follows."""

    rows: list[int]


@register
class MaxFactor(Optimizer):
    """θ <- θ - lr·weight_decay·θ - a·U for vectors, - a·sign(U)·max|U of the row| for matrices.

    a = max(eps₂, RMS θ)·max(min_lr, min(lr, 1/sqrt t)), or 0 if lr is 0.
    U = u / (max(1, RMS(u)/clip_threshold)·max|u|), u = g / sqrt(max(V, eps₁²)).
    Matrices: V = R·C / max(R), where R and C are averages of the row and column means of g² that
    give new means the weight b = clamp(t^beta2_decay, .001, .999). A convolution is a matrix of
    output channels x all other axes. Vectors and scalars: V <- gamma·V + (1 - gamma)·g².
    A matrix whose g² overflows is not changed. With a momentum rule, the gradients of the tensors
    that it follows are averaged first, with the coefficient c of the rule: m <- c·m + (1 - c)·g.

    Args:
        params: parameters or groups; with a rule, a group may have its own `kind`, `alpha` and
            `n_bands`.
        lr: largest change of a parameter per step, in units of its own RMS.
        beta2_decay: exponent of t in the weight b, below 0.
        eps: lower bounds of the square root of V and of RMS θ.
        clip_threshold: RMS(u) above which u is scaled down.
        weight_decay: share of a parameter that is subtracted per step, times lr.
        gamma: decay of V of vectors, in [0, 1).
        min_lr: lower bound of the rate, unless lr is 0.
        full_matrix: whether matrices too have a V of the full shape, averaged with the weight b.
        clip: largest norm of g, relative to max(‖θ‖, eps₂·sqrt(elements)); None for no limit.
        magnitude: size of a matrix's step: the maximum of |U| over each row (`row`) or over all
            elements (`max`), or its median (`median`).
        maximize: whether to ascend along the gradient instead.
        rules: factories `momentum` and `spectrum`, see `Optimizer`; without `momentum`, gradients
            are not averaged.
    """

    default_rule: Mapping[str, Any] = {"name": "constant"}
    # whether gradients are averaged by the default rule if none is passed
    averages_by_default: ClassVar[bool] = False

    def __init__(  # noqa: PLR0913
        self,
        params: ParamsT,
        *,
        lr: float = 0.1,
        beta2_decay: float = -0.8,
        eps: tuple[float, float] = (1e-10, 1e-3),
        clip_threshold: float = 1.0,
        weight_decay: float = 0.025,
        gamma: float = 0.99,
        min_lr: float = 1e-7,
        full_matrix: bool = False,
        clip: float | None = None,
        magnitude: Magnitude = "row",
        maximize: bool = False,
        **rules: Factory | None,
    ):
        if not 0 <= gamma < 1 or beta2_decay >= 0 or min(eps) <= 0:
            raise ValueError(
                f"gamma={gamma} must be in [0, 1), beta2_decay={beta2_decay} below 0, "
                f"eps={eps} above 0"
            )
        if magnitude not in ("row", "max", "median"):
            raise ValueError(f"magnitude={magnitude} must be row, max or median")
        if clip_threshold <= 0 or (clip is not None and clip <= 0):
            raise ValueError(f"clip_threshold={clip_threshold} and clip={clip} must be above 0")
        self.full_matrix = full_matrix
        self.magnitude = magnitude
        self.scratch: Tensor | None = None
        defaults = {
            "lr": lr,
            "alpha": 0.9,
            "n_bands": 8,
            "beta2_decay": beta2_decay,
            "eps": eps,
            "clip_threshold": clip_threshold,
            "weight_decay": weight_decay,
            "gamma": gamma,
            "min_lr": min_lr,
            "clip": clip,
            "maximize": maximize,
        }
        super().__init__(params, defaults, **rules)
        self.averaged: set[Tensor] = set()
        if rules.get("momentum") is not None or self.averages_by_default:
            # a rule may ignore small tensors
            params_in_order = all_params(self.param_groups)
            self.averaged = set(params_in_order)
            if isinstance(self.rule, FollowsTensors):
                self.averaged = {params_in_order[i] for i in self.rule.rows}

    def init(self, param: Tensor) -> dict[str, Tensor]:
        state = {}
        if param in self.averaged:
            state["exp_avg"] = torch.zeros_like(param, memory_format=torch.contiguous_format)
        if param.ndim < 2 or self.full_matrix:
            shapes = {"exp_avg_sq": tuple(param.shape)}
        else:
            shapes = {"exp_avg_sq_row": (len(param),), "exp_avg_sq_col": (prod(param.shape[1:]),)}
        # sums of squares need more digits than half precision has
        dtype = torch.promote_types(param.dtype, torch.float32)
        for name, shape in shapes.items():
            state[name] = torch.zeros(shape, dtype=dtype, device=param.device)
        return state

    def _record_metrics(self, coefficients: Float[Tensor, " tensors"]) -> None:
        is_averaged = [float(p in self.averaged) for p in all_params(self.param_groups)]
        mask = torch.tensor(is_averaged).to(coefficients.device)
        # tensors whose gradients are not averaged have no momentum
        super()._record_metrics(mask * coefficients)

    def update_group(self, group: Group, update: GroupUpdate, found_inf: Tensor) -> None:
        if has_kernels(group, update, self.full_matrix, self.magnitude):
            step_by_kernels(group, update, found_inf, self.magnitude)
        else:
            super().update_group(group, update, found_inf)

    def update(self, group: Group, updates: Sequence[Update], found_inf: Tensor) -> None:
        # average the gradients of the tensors that the rule follows
        averaged = [u for u in updates if u.param in self.averaged]
        new_gradients = [u.gradient for u in averaged]
        new_weights = [1 - u.momentum for u in averaged]
        average([u.state["exp_avg"] for u in averaged], new_gradients, new_weights, found_inf)
        sources = [_source(u) for u in updates]
        gradients = [g.to(torch.promote_types(g.dtype, torch.float32)) for g in sources]
        # a = RMS θ · rate, in units of lr; `descend` multiplies by lr
        sizes = self._sizes(group, updates)
        if group["clip"] is not None:
            gradients = self._clip(group, updates, gradients, sizes)
        weights, rates = self._weights_and_rates(group, updates, found_inf)
        steps = list(map(mul, sizes, rates))
        # vectors together, matrices one by one
        vectors = [i for i, g in enumerate(gradients) if g.ndim < 2]
        if vectors:
            vector_updates = [updates[i] for i in vectors]
            vector_gradients = [gradients[i] for i in vectors]
            vector_steps = [steps[i] for i in vectors]
            self._update_vectors(group, vector_updates, vector_gradients, vector_steps, found_inf)
        for u, g, weight, a in zip(updates, gradients, weights, steps, strict=True):
            if g.ndim > 1:
                self._update_matrix(group, u, g, weight, a, found_inf)

    def _sizes(self, group: Group, updates: Sequence[Update]) -> Scalars:
        """Returns max(eps₂, RMS θ) of each parameter."""
        norms = norms_of([u.param for u in updates])
        # a sum of squares that overflows counts as the largest number
        norms = torch.where(norms.isinf(), LARGEST**0.5, norms)
        return [
            clamp_min(norm * max(1, u.param.numel()) ** -0.5, group["eps"][1])
            for u, norm in zip(updates, scalars(norms), strict=True)
        ]

    def _clip(
        self, group: Group, updates: Sequence[Update], gradients: list[Tensor], sizes: Scalars
    ) -> list[Tensor]:
        """Returns the gradients scaled down to norms of at most clip·size·sqrt(elements)."""
        clipped = []
        norms = scalars(norms_of(gradients))
        for u, g, size, norm in zip(updates, gradients, sizes, norms, strict=True):
            longest = group["clip"] * size * u.param.numel() ** 0.5
            clipped.append(g * (1 / clamp_min(norm / clamp_min(longest, TINY), 1.0)))
        return clipped

    def _weights_and_rates(
        self, group: Group, updates: Sequence[Update], found_inf: Tensor
    ) -> tuple[Scalars, Scalars]:
        """Returns the weights b, and max(min_lr, min(lr, 1/sqrt t)) / lr (0 where lr is 0)."""
        # t is 0 while all steps so far have been skipped
        t = torch.stack([torch.as_tensor(u.step) for u in updates]).clamp_min(1.0)
        lr = group["lr"]
        if isinstance(lr, Tensor):
            lr = lr.to(t.device, t.dtype, non_blocking=True)
        else:
            lr = torch.full_like(found_inf, lr)
        weights = t.pow(group["beta2_decay"]).clamp(1e-3, 0.999)
        rate = torch.minimum(t.rsqrt(), lr).clamp_min(group["min_lr"])
        return scalars(weights), scalars(torch.where(lr > 0, rate / lr, 0.0))

    def _scale(
        self, group: Group, a: float | Tensor, largest: float | Tensor, rms: float | Tensor
    ) -> float | Tensor:
        """Returns a / (max(1, RMS(u)/clip_threshold)·max|u|), the factor from u to the step.

        It is finite, so that the step is 0 where u is 0.
        """
        divisor = largest * clamp_min(rms / group["clip_threshold"], 1.0)
        factor = a / clamp_min(divisor, TINY)
        return factor.clamp_max(LARGEST) if isinstance(factor, Tensor) else min(factor, LARGEST)

    def _update_vectors(
        self,
        group: Group,
        updates: Sequence[Update],
        gradients: list[Tensor],
        steps: Scalars,
        found_inf: Tensor,
    ) -> None:
        """θ <- θ - lr·weight_decay·θ - a·U for vectors and scalars; `steps` are a / lr."""
        # V, in which squares that overflow count as the largest number
        v = [u.state["exp_avg_sq"] for u in updates]
        squares = torch._foreach_mul(gradients, gradients)
        squares = torch._foreach_minimum(squares, LARGEST)
        average(v, squares, [1 - group["gamma"]] * len(v), found_inf)
        # u = g / sqrt(max(V, eps₁²))
        roots = torch._foreach_sqrt(torch._foreach_maximum(v, group["eps"][0] ** 2))
        scaled = torch._foreach_div(gradients, roots)
        largest = scalars(torch.stack([x.float() for x in torch._foreach_norm(scaled, torch.inf)]))
        norms = scalars(torch.stack([x.float() for x in torch._foreach_norm(scaled, 2)]))
        # a·U / lr
        directions = []
        for i, (u, x) in enumerate(zip(updates, scaled, strict=True)):
            rms = norms[i] * max(1, x.numel()) ** -0.5
            factor = self._scale(group, steps[i], largest[i], rms)
            directions.append((x * factor).to(u.param.dtype))
        params = [u.param for u in updates]
        descend(params, directions, group["lr"], group["weight_decay"], found_inf)

    def _update_matrix(
        self,
        group: Group,
        update: Update,
        gradient: Tensor,
        weight: float | Tensor,
        step: float | Tensor,
        found_inf: Tensor,
    ) -> None:
        """θ <- θ - lr·weight_decay·θ - a·sign(U)·magnitude; `weight` is b, `step` is a / lr."""
        g = gradient.reshape(len(gradient), -1)
        u2, buffer = self._scratch_like(g)
        torch.mul(g, g, out=u2)
        # means of rows and, if V needs them, of columns
        axes = (1,) if self.full_matrix else (1, 0)
        means = [u2.mean(axis) for axis in axes]
        # a matrix whose g², or a sum of them, overflows is not changed
        zeros = [means[0].sum() * 0, *[(mean * 0).sum() for mean in means[1:]]]
        overflow = torch.stack(zeros).sum().ne(0).to(found_inf)
        found_inf = torch.maximum(found_inf, overflow)
        # u² = g² / V, up to a factor for each row
        floor = group["eps"][0] ** 2
        factor = self._divide_by_v(u2, means, update.state, weight, floor, buffer, found_inf)
        row_largest = u2.amax(1, keepdim=True) * factor
        row_mean = u2.mean(1, keepdim=True) * factor
        largest, rms = scalars(torch.stack([row_largest.max(), row_mean.mean()]).sqrt())
        # sign(U) times the magnitude, written over u²
        if self.magnitude == "max":
            row_largest = row_largest.max()
        elif self.magnitude == "median":
            row_largest = (u2 * factor).median()
        scale = self._scale(group, step, largest, rms)
        # NaN is infinity times 0, where u² overflows
        magnitude = (row_largest.sqrt() * scale).nan_to_num_(0.0)
        direction = torch.sign(g, out=u2).mul_(magnitude)
        direction = direction.to(update.param.dtype).view(update.param.shape)
        descend([update.param], [direction], group["lr"], group["weight_decay"], found_inf)

    def _divide_by_v(
        self,
        u2: Tensor,
        means: list[Tensor],
        state: dict[str, Tensor],
        weight: float | Tensor,
        floor: float,
        buffer: Tensor,
        found_inf: Tensor,
    ) -> Tensor:
        """Averages g² into V and divides g² by max(V, floor) in place, up to a factor for each row.

        Args:
            u2: g² as a matrix, overwritten.
            means: means of its rows and columns, or of its rows if V has the full shape.
            buffer: a matrix of the same shape, overwritten.

        Returns:
            The factor, which broadcasts against the rows: u² = u2·factor.
        """
        # V of the full shape
        if self.full_matrix:
            v = state["exp_avg_sq"].view(u2.shape)
            average([v], [u2], [weight], found_inf)
            u2 /= torch.clamp_min(v, floor, out=buffer)
            return u2.new_ones(())
        # V = R·C / max(R)
        rows = state["exp_avg_sq_row"]
        columns = state["exp_avg_sq_col"]
        average([rows, columns], means, [weight, weight], found_inf)
        rows = rows / rows.max().clamp_min(TINY)
        # if no V is below the floor, which only the CPU can check without a synchronization,
        # dividing by the columns and returning the rows as the factor takes a third of the time
        if u2.device.type == "cpu" and scalars((rows.min() * columns.min())[None])[0] >= floor:
            u2 *= 1 / columns
            return (1 / rows)[:, None]
        u2 /= torch.outer(rows, columns, out=buffer).clamp_min_(floor)
        return u2.new_ones(())

    def _scratch_like(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """Returns two tensors of the same shape to write into.

        All calls share their memory, since allocation takes longer than the arithmetic.
        """
        n = tensor.numel()
        scratch = self.scratch
        if (
            scratch is None
            or scratch.shape[1] < n
            or scratch.dtype != tensor.dtype
            or scratch.device != tensor.device
        ):
            scratch = tensor.new_empty(2, n)
            self.scratch = scratch
        return scratch[0, :n].view(tensor.shape), scratch[1, :n].view(tensor.shape)


def _source(update: Update) -> Tensor:
    """Returns the average of the gradients, or the gradient itself where momentum is 0."""
    average = update.state.get("exp_avg", update.gradient)
    # the average equals the gradient only up to rounding
    if isinstance(update.momentum, Tensor):
        return torch.where(update.momentum == 0, update.gradient, average)
    return average if update.momentum else update.gradient
