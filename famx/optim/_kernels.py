"""Fused kernels for many tensors at once, each with its plain form, and helpers for scalars.

`average` computes m <- m + w·(g - m) for many tensors. The weights w may be tensors on the device,
and nothing changes if a gradient of the step is not finite. `torch._foreach_lerp_` has no flag that
skips a step, so it would need a device synchronization or a copy of all tensors.
`torch._fused_sgd_` has such a flag. In a single launch for many tensors it computes

    g <- -g if maximize;  g <- g + weight_decay·p;  p <- p - lr·g   (without momentum)

It reads `lr` and the flag `found_inf` on the device, and writes nothing if the flag is 1. It can
therefore serve as a lerp: with m for p, w for lr, weight_decay=1 and maximize=True it computes

    m <- m - w·(-g + m) = m + w·(g - m)

It ignores strides, so all its tensors must be contiguous.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from famx.kernels.tensor_table import supports

EPS = torch.finfo(torch.float32).eps
TINY = torch.finfo(torch.float32).tiny
# devices for which torch has fused optimizers; "meta" has none
FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


def average(
    averages: Sequence[Tensor],
    gradients: Sequence[Tensor],
    weights: Sequence[float | Tensor],
    found_inf: Float[Tensor, ""],
) -> None:
    """m <- m + w·(g - m) in place; no change if `found_inf` is 1.

    Args:
        averages, gradients: contiguous; both tensors of a pair have the same dtype.
        weights: one per pair, a number or a 0-d tensor on the device.
        found_inf: 0-d, 1 or 0.
    """
    if found_inf.device.type not in FUSED_DEVICES:
        average_reference(averages, gradients, weights, found_inf)
        return
    if supports(averages, gradients):
        _average_by_kernel(averages, gradients, weights, found_inf)
        return
    # one launch for all tensors with the same weight and dtype
    batches: dict[tuple[float | Tensor, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
    for m, g, w in zip(averages, gradients, weights, strict=True):
        batch_averages, batch_gradients = batches.setdefault((w, m.dtype), ([], []))
        batch_averages.append(m)
        batch_gradients.append(g)
    for (w, _), (batch_averages, batch_gradients) in batches.items():
        torch._fused_sgd_(
            batch_averages,
            batch_gradients,
            [],
            lr=w,
            weight_decay=1.0,
            maximize=True,
            momentum=0.0,
            dampening=0.0,
            nesterov=False,
            is_first_step=False,
            found_inf=found_inf,
        )


def _average_by_kernel(
    averages: Sequence[Tensor],
    gradients: Sequence[Tensor],
    weights: Sequence[float | Tensor],
    found_inf: Float[Tensor, ""],
) -> None:
    """Computes `average` in one launch for each number among the weights, and one for tensors."""
    from famx.kernels import multi_tensor

    # tensors by number, and all whose weight is on the device
    rows_by_weight: dict[float | None, list[int]] = {}
    for i, w in enumerate(weights):
        rows_by_weight.setdefault(None if isinstance(w, Tensor) else w, []).append(i)
    for weight, rows in rows_by_weight.items():
        batch_weights: float | Tensor
        if weight is None:
            batch_weights = torch.stack([torch.as_tensor(weights[i]) for i in rows]).float()
        else:
            batch_weights = weight
        batch_averages = [averages[i] for i in rows]
        batch_gradients = [gradients[i] for i in rows]
        multi_tensor.average(batch_averages, batch_gradients, batch_weights, found_inf)


def average_reference(
    averages: Sequence[Tensor],
    gradients: Sequence[Tensor],
    weights: Sequence[float | Tensor],
    found_inf: Float[Tensor, ""],
) -> None:
    """Plain form of `average`, for tests and for devices without the fused kernel."""
    for m, g, w in zip(averages, gradients, weights, strict=True):
        m.copy_(torch.where(found_inf > 0, m, m + w * (g - m)))


def descend(
    params: Sequence[Tensor],
    directions: Sequence[Tensor],
    lr: float | Tensor,
    weight_decay: float,
    found_inf: Float[Tensor, ""],
) -> None:
    """θ <- θ - lr·(direction + weight_decay·θ) in place; no change if `found_inf` is 1.

    Args:
        params: parameters with any strides.
        directions: contiguous, each with the dtype of its parameter.
        lr: learning rate, a number or a 0-d tensor on any device.
        weight_decay: share of a parameter that is subtracted per step, times lr.
        found_inf: 0-d, 1 or 0.
    """
    if found_inf.device.type not in FUSED_DEVICES:
        descend_reference(params, directions, lr, weight_decay, found_inf)
        return
    if isinstance(lr, Tensor):
        lr = lr.to(found_inf.device, torch.float32, non_blocking=True)
    if supports(params, directions):
        from famx.kernels import multi_tensor

        with contiguous(params) as dense:
            multi_tensor.descend(dense, directions, lr, weight_decay, found_inf)
        return
    # one launch for all tensors with the same dtype
    batches: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for p, direction in zip(params, directions, strict=True):
        batch_params, batch_directions = batches.setdefault(p.dtype, ([], []))
        batch_params.append(p)
        batch_directions.append(direction)
    for batch_params, batch_directions in batches.values():
        with contiguous(batch_params) as dense:
            torch._fused_sgd_(
                dense,
                batch_directions,
                [],
                lr=lr,
                weight_decay=weight_decay,
                maximize=False,
                momentum=0.0,
                dampening=0.0,
                nesterov=False,
                is_first_step=False,
                found_inf=found_inf,
            )


def descend_reference(
    params: Sequence[Tensor],
    directions: Sequence[Tensor],
    lr: float | Tensor,
    weight_decay: float,
    found_inf: Float[Tensor, ""],
) -> None:
    """Plain form of `descend`, for tests and for devices without the fused kernel."""
    for p, direction in zip(params, directions, strict=True):
        p.copy_(torch.where(found_inf > 0, p, p - lr * (direction + weight_decay * p)))


@contextmanager
def contiguous(params: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yields contiguous versions of parameters; on exit, copies their new values back."""
    if all(map(Tensor.is_contiguous, params)):
        yield list(params)
        return
    dense = [p.contiguous() for p in params]
    yield dense
    for p, result in zip(params, dense, strict=True):
        # a parameter that was contiguous already has been written to directly
        if result is not p:
            p.copy_(result)


def scalars(values: Float[Tensor, " n"]) -> Sequence[float | Tensor]:
    """Returns the values one by one: floats on the CPU, else 0-d tensors, without a sync."""
    return values.tolist() if values.device.type == "cpu" else list(values.unbind())


def clamp_min(value: float | Tensor, floor: float) -> float | Tensor:
    """Returns the value, or `floor` where the value is smaller."""
    return value.clamp_min(floor) if isinstance(value, Tensor) else max(value, floor)


def norms_of(tensors: Sequence[Tensor]) -> Float[Tensor, " tensors"]:
    """Returns the Euclidean norm of each tensor."""
    if any(x.dtype.itemsize < 4 for x in tensors):
        tensors = [x.float() for x in tensors]
    return torch.stack([x.float() for x in torch._foreach_norm(list(tensors))])
