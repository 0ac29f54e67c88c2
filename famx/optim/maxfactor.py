"""MaxFactor: Adafactor scaled by the largest row, its step a sign as long as the row's largest entry (seed.md)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from famx.optim.base import Optimizer, Row, scalars
from famx.optim.ema_sgd import average, descend
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
        lr: float = 0.025,
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
        if not 0 <= gamma < 1:
            raise ValueError(f"gamma={gamma} is not in [0, 1)")
        if magnitude not in ("row", "max", "median"):
            raise ValueError(f"magnitude={magnitude} is none of row, max, median")
        if clip_threshold <= 0 or (clip is not None and clip <= 0):
            raise ValueError(f"clip_threshold={clip_threshold} and clip={clip} must be above 0")
        self.full_matrix, self.magnitude = full_matrix, magnitude
        options = {"beta2_decay": beta2_decay, "eps": eps, "clip_threshold": clip_threshold, "gamma": gamma}
        super().__init__(
            params,
            momentum,
            spectrum,
            usual=self.usual or {"name": "constant"},
            **{"lr": lr, "alpha": 0.9, "n_bands": 8, "weight_decay": weight_decay, "min_lr": min_lr, "clip": clip},
            **options,
        )
        worn = momentum is not None or self.usual is not None
        self.followed = {self._owned()[i][0] for i in self.rule.rows} if worn else set()

    def init(self, param: Tensor) -> dict[str, Tensor]:
        # sums of squares need more digits than half precision has
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.promote_types(param.dtype, torch.float32), device=param.device)

        averaged = param in self.followed
        state = {"exp_avg": torch.zeros_like(param, memory_format=torch.contiguous_format)} if averaged else {}
        if param.ndim < 2 or self.full_matrix:
            return state | {"exp_avg_sq": zeros(*param.shape)}
        n_rows = param.shape[0]
        return state | {"exp_avg_sq_row": zeros(n_rows), "exp_avg_sq_col": zeros(param.numel() // n_rows)}

    def update(self, group: dict[str, Any], rows: Sequence[Row], cancel: Tensor) -> None:
        followed = [row for row in rows if row.param in self.followed]
        averages = [self.state[row.param]["exp_avg"] for row in followed]
        average(averages, [row.gradient for row in followed], [1 - row.a for row in followed], cancel)
        weights, shares = self.rates(group, rows, cancel)
        for row, weight, share in zip(rows, weights, shares, strict=True):
            p, state = row.param, self.state[row.param]
            g = state.get("exp_avg", row.gradient)
            g = g.to(torch.promote_types(g.dtype, torch.float32))
            least = group["eps"][1]
            size = (torch.linalg.vector_norm(p, dtype=g.dtype) * max(1, p.numel()) ** -0.5).clamp_min(least)
            if group["clip"] is not None:
                longest = size * (group["clip"] * p.numel() ** 0.5)
                g = g * (longest / torch.linalg.vector_norm(g)).clamp_max(1.0)
            step = self.step_of(g, state, group, weight, size * share, cancel)
            descend([p], [step.to(p.dtype).view(p.shape)], group["lr"], group["weight_decay"], cancel)

    def rates(
        self, group: dict[str, Any], rows: Sequence[Row], cancel: Tensor
    ) -> tuple[Sequence[float | Tensor], Sequence[float | Tensor]]:
        """Of each tensor b, and max(min_lr, min(lr, 1/sqrt t)) in units of lr, for the descent multiplies by that."""
        t = torch.stack([torch.as_tensor(row.steps) for row in rows]).clamp_min(1.0)
        lr = group["lr"]
        lr = lr.to(t.device, t.dtype, non_blocking=True) if isinstance(lr, Tensor) else torch.full_like(cancel, lr)
        rate = torch.minimum(t.rsqrt(), lr).clamp_min(group["min_lr"])
        return scalars(t.pow(group["beta2_decay"]).clamp(1e-3, 0.999)), scalars(torch.where(lr > 0, rate / lr, 0.0))

    def step_of(
        self,
        g: Tensor,
        state: dict[str, Tensor],
        group: dict[str, Any],
        weight: float | Tensor,
        a: Tensor,
        cancel: Tensor,
    ) -> Tensor:
        """a·U, or what is taken for it of a matrix, after the statistics took g in."""
        least, matrix = group["eps"][0] ** 2, g.ndim > 1
        g = g.reshape(len(g), -1) if matrix else g
        u2 = g * g
        if "exp_avg_sq" in state:
            v = state["exp_avg_sq"].view(g.shape)
            average([v], [u2], [weight if matrix else 1 - group["gamma"]], cancel)
            v = v.clamp_min(least)
        else:
            row, column = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
            average([row, column], [u2.mean(1), u2.mean(0)], [weight, weight], cancel)
            v = torch.outer(row / row.max().clamp_min(TINY), column).clamp_min_(least)
        u2 /= v
        largest = u2.amax(1, keepdim=True).sqrt() if matrix else u2.sqrt()
        clipped = (u2.mean().sqrt() / group["clip_threshold"]).clamp_min(1.0)
        scale = a / (clipped * largest.max()).clamp_min(TINY)
        if self.magnitude != "row" and matrix:
            largest = largest.max() if self.magnitude == "max" else u2.median().sqrt()
        return g.sign().mul_(largest * scale)
