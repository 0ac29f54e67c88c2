"""MaxFactor: Adafactor scaled by the largest row, its step a sign as long as the row's largest entry (seed.md)."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from operator import mul
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from famx.optim._kernels import average, descend
from famx.optim.base import Optimizer, Update, at_least, scalars
from famx.registry import register

TINY = torch.finfo(torch.float32).tiny
Magnitude = Literal["row", "max", "median"]


@register
class MaxFactor(Optimizer):
    """θ <- θ - lr·weight_decay·θ - a·U for vectors, - a·sign(U)·max|U of the row| for matrices.

    a = max(eps₂, RMS θ)·max(min_lr, min(lr, 1/sqrt t)), but 0 where lr is. Convolutions are matrices, output channels
    x all the rest. U = u / (max(1, RMS(u)/clip_threshold)·max|u|), u = g / sqrt(max(V, eps₁²)). Matrices:
    V = R·C / max(R), the averages of the row and column means of g², the new ones with weight
    b = clamp(t^beta2_decay, .001, .999). Vectors and scalars: V <- gamma·V + (1 - gamma)·g².
    A matrix whose g² is too large for a number stays as it is.
    Under a momentum rule the gradients of the tensors it follows are first averaged: m <- a·m + (1 - a)·g is their g.

    Args:
        params: parameters or groups; under a rule a group may have `kind`, `alpha` and `n_bands` of its own.
        momentum: factory of a momentum rule; without one gradients are taken as they are.
        spectrum: factory of what that rule measures with.
        lr: most that a parameter moves in one step, in units of its own size.
        beta2_decay: exponent of the weight b, below 0.
        eps: least root of V, and the least size that a parameter is taken to have.
        clip_threshold: of RMS(u).
        weight_decay: share of a parameter taken away per step, times lr.
        gamma: decay of V of vectors, in [0, 1).
        min_lr: least rate of a group whose lr is not 0.
        full_matrix: whether matrices too have a V of their own shape, with weight b.
        clip: if given, g is first shortened to clip·‖θ‖, or clip·eps₂·sqrt(entries) where that is more.
        magnitude: of a matrix' step: largest entry of each row of |U|, of all, or median of all.
    """

    usual: ClassVar[Mapping[str, Any] | None] = None

    def __init__(
        self,
        params: Any,
        momentum: Callable[..., nn.Module] | None = None,
        spectrum: Callable[..., nn.Module] | None = None,
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
    ):
        if not 0 <= gamma < 1 or beta2_decay >= 0 or min(eps) <= 0:
            raise ValueError(
                f"gamma={gamma} must be in [0, 1), beta2_decay={beta2_decay} below 0, eps={eps} above 0"
            )
        if magnitude not in ("row", "max", "median"):
            raise ValueError(f"magnitude={magnitude} is none of row, max, median")
        if clip_threshold <= 0 or (clip is not None and clip <= 0):
            raise ValueError(f"clip_threshold={clip_threshold} and clip={clip} must be above 0")
        self.room: Tensor | None = None
        self.full_matrix, self.magnitude = full_matrix, magnitude
        options = {
            "beta2_decay": beta2_decay,
            "eps": eps,
            "clip_threshold": clip_threshold,
            "gamma": gamma,
        }
        super().__init__(
            params,
            momentum,
            spectrum,
            usual=self.usual or {"name": "constant"},
            **{
                "lr": lr,
                "alpha": 0.9,
                "n_bands": 8,
                "weight_decay": weight_decay,
                "min_lr": min_lr,
                "clip": clip,
            },
            **options,
        )
        worn = momentum is not None or self.usual is not None
        self.followed = {self._owned()[i][0] for i in self.rule.rows} if worn else set()

    def init(self, param: Tensor) -> dict[str, Tensor]:
        # sums of squares need more digits than half precision has
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(
                shape, dtype=torch.promote_types(param.dtype, torch.float32), device=param.device
            )

        averaged = param in self.followed
        state = (
            {"exp_avg": torch.zeros_like(param, memory_format=torch.contiguous_format)}
            if averaged
            else {}
        )
        if param.ndim < 2 or self.full_matrix:
            return state | {"exp_avg_sq": zeros(*param.shape)}
        return state | {
            "exp_avg_sq_row": zeros(len(param)),
            "exp_avg_sq_col": zeros(prod(param.shape[1:])),
        }

    def _show(self, coefficients: Tensor) -> None:
        averaged = torch.tensor([float(p in self.followed) for p, _ in self._owned()]).to(
            coefficients.device
        )
        super()._show(averaged * coefficients)  # what is not averaged has no momentum

    def update(self, group: dict[str, Any], rows: Sequence[Update], cancel: Tensor) -> None:
        followed = [row for row in rows if row.param in self.followed]
        averages = [row.state["exp_avg"] for row in followed]
        average(
            averages, [row.gradient for row in followed], [1 - row.a for row in followed], cancel
        )
        taken = [row.state.get("exp_avg", row.gradient) for row in rows]
        gradients = [g.to(torch.promote_types(g.dtype, torch.float32)) for g in taken]
        sizes = [
            at_least(length * max(1, row.param.numel()) ** -0.5, group["eps"][1])
            for row, length in zip(rows, _lengths([row.param for row in rows]), strict=True)
        ]
        if group["clip"] is not None:
            longest = [
                group["clip"] * size * row.param.numel() ** 0.5
                for row, size in zip(rows, sizes, strict=True)
            ]
            lengths = zip(longest, _lengths(gradients), strict=True)
            limits = [1 / at_least(length / at_least(most, TINY), 1.0) for most, length in lengths]
            gradients = [g * share for g, share in zip(gradients, limits, strict=True)]
        weights, shares = self.rates(group, rows, cancel)
        whole = list(zip(rows, gradients, weights, map(mul, sizes, shares), strict=True))
        if vectors := [each for each in whole if each[1].ndim < 2]:
            self.move_vectors(group, vectors, cancel)
        for each in whole:
            if each[1].ndim > 1:
                self.move_matrix(group, *each, cancel)

    def rates(
        self, group: dict[str, Any], rows: Sequence[Update], cancel: Tensor
    ) -> tuple[Sequence[float | Tensor], Sequence[float | Tensor]]:
        """Of each tensor b, and max(min_lr, min(lr, 1/sqrt t)) in units of lr, for the descent multiplies by that."""
        t = torch.stack([torch.as_tensor(row.steps) for row in rows]).clamp_min(1.0)
        lr = group["lr"]
        lr = (
            lr.to(t.device, t.dtype, non_blocking=True)
            if isinstance(lr, Tensor)
            else torch.full_like(cancel, lr)
        )
        rate = torch.minimum(t.rsqrt(), lr).clamp_min(group["min_lr"])
        return scalars(t.pow(group["beta2_decay"]).clamp(1e-3, 0.999)), scalars(
            torch.where(lr > 0, rate / lr, 0.0)
        )

    def scale(
        self, group: dict[str, Any], a: float | Tensor, top: float | Tensor, rms: float | Tensor
    ) -> Any:
        """a / (D·max|u|), from the largest and the root mean square of u."""
        return a / at_least(top * at_least(rms / group["clip_threshold"], 1.0), TINY)

    def move_vectors(
        self, group: dict[str, Any], whole: Sequence[Sequence[Any]], cancel: Tensor
    ) -> None:
        """θ <- θ - lr·weight_decay·θ - a·U for vectors and scalars."""
        rows, gradients, _, strides = zip(*whole, strict=True)
        v = [row.state["exp_avg_sq"] for row in rows]
        squares = torch._foreach_minimum(
            torch._foreach_mul(gradients, gradients), torch.finfo(torch.float32).max
        )
        average(v, squares, [1 - group["gamma"]] * len(v), cancel)
        roots = torch._foreach_sqrt(torch._foreach_maximum(v, group["eps"][0] ** 2))
        u = torch._foreach_div(gradients, roots)
        tops, norms = (
            scalars(torch.stack([x.float() for x in torch._foreach_norm(u, p)]))
            for p in (torch.inf, 2)
        )
        rms = [norm * max(1, x.numel()) ** -0.5 for norm, x in zip(norms, u, strict=True)]
        scales = [self.scale(group, *each) for each in zip(strides, tops, rms, strict=True)]
        steps = [
            (x * scale).to(row.param.dtype) for row, x, scale in zip(rows, u, scales, strict=True)
        ]
        descend([row.param for row in rows], steps, group["lr"], group["weight_decay"], cancel)

    def move_matrix(
        self,
        group: dict[str, Any],
        row: Update,
        g: Tensor,
        weight: float | Tensor,
        a: float | Tensor,
        cancel: Tensor,
    ) -> None:
        """θ <- θ - lr·weight_decay·θ - a·sign(U)·magnitude."""
        g = g.reshape(len(g), -1)
        u2, spare = self.scratch(g)
        torch.mul(g, g, out=u2)
        means = u2.mean(1)
        cancel = torch.maximum(
            cancel, (means.sum() * 0).ne(0).to(cancel)
        )  # g² has left the range of numbers
        relative = self.divide(u2, means, row.state, weight, group["eps"][0] ** 2, spare, cancel)
        largest, mean = u2.amax(1, keepdim=True) * relative, u2.mean(1, keepdim=True) * relative
        top, rms = scalars(torch.stack([largest.max(), mean.mean()]).sqrt())
        if self.magnitude != "row":
            largest = largest.max() if self.magnitude == "max" else (u2 * relative).median()
        step = torch.sign(g, out=u2).mul_(largest.sqrt() * self.scale(group, a, top, rms))
        step = step.to(row.param.dtype).view(row.param.shape)
        descend([row.param], [step], group["lr"], group["weight_decay"], cancel)

    def divide(
        self,
        u2: Tensor,
        means: Tensor,
        state: dict[str, Tensor],
        weight: float | Tensor,
        least: float,
        spare: Tensor,
        cancel: Tensor,
    ) -> Tensor:
        """Takes g² into the statistics and divides it by max(V, least), but for a factor a row, which it returns.

        Args:
            means: of the rows of g².
        """
        if self.full_matrix:
            kept = state["exp_avg_sq"].view(u2.shape)
            average([kept], [u2], [weight], cancel)
            u2 /= torch.clamp_min(kept, least, out=spare)
            return u2.new_ones(())
        rows, columns = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
        average([rows, columns], [means, u2.mean(0)], [weight, weight], cancel)
        rows = rows / rows.max().clamp_min(TINY)
        if u2.device.type == "cpu" and scalars((rows.min() * columns.min())[None])[0] >= least:
            u2 *= 1 / columns  # a third of the time of the general way
            return (1 / rows)[:, None]
        u2 /= torch.outer(rows, columns, out=spare).clamp_min_(least)
        return u2.new_ones(())

    def scratch(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Two tensors of that shape to write into, the same memory for all: new memory costs more than the sums."""
        room, n = self.room, like.numel()
        if (
            room is None
            or room.shape[1] < n
            or room.dtype != like.dtype
            or room.device != like.device
        ):
            room = self.room = like.new_empty(2, n)
        return room[0, :n].view(like.shape), room[1, :n].view(like.shape)


def _lengths(tensors: Sequence[Tensor]) -> Sequence[float | Tensor]:
    """Euclidean, of each."""
    half = any(x.dtype.itemsize < 4 for x in tensors)
    norms = torch._foreach_norm([x.float() for x in tensors] if half else tensors)
    return scalars(torch.stack([x.float() for x in norms]))
