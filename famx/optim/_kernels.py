"""torch's fused kernels, with what famx uses them for."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

EPS = torch.finfo(torch.float32).eps


PLAIN = {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "is_first_step": False}


def average(
    averages: Sequence[Tensor],
    gradients: Sequence[Tensor],
    weights: Sequence[float | Tensor],
    cancel: Tensor,
) -> None:
    """m <- m + w·(g - m), in place; nothing where cancel is 1. All contiguous, for the kernel does not see strides."""
    if cancel.is_meta:  # torch's fused kernels have no meta form, and there is nothing to compute
        return
    alike: dict[Any, list[tuple[Tensor, Tensor]]] = {}
    for m, g, w in zip(averages, gradients, weights, strict=True):
        alike.setdefault((w, m.dtype), []).append((m, g))
    # a descent from m against -g + 1·m: only the fused kernel reads w and cancel where they are, on the device
    for (w, _), pairs in alike.items():
        options = {"lr": w, "weight_decay": 1.0, "maximize": True, "found_inf": cancel, **PLAIN}
        torch._fused_sgd_(*map(list, zip(*pairs, strict=True)), [], **options)


def descend(
    params: Sequence[Tensor],
    directions: Sequence[Tensor],
    lr: float | Tensor,
    weight_decay: float,
    cancel: Tensor,
) -> None:
    """θ <- θ - lr·(direction + weight_decay·θ), in place; nothing where cancel is 1."""
    if cancel.is_meta:
        return
    if isinstance(lr, Tensor):
        lr = lr.to(cancel.device, torch.float32, non_blocking=True)
    alike: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
    for p, direction in zip(params, directions, strict=True):
        alike.setdefault(p.dtype, []).append((p, direction))
    options = {
        "lr": lr,
        "weight_decay": weight_decay,
        "maximize": False,
        "found_inf": cancel,
        **PLAIN,
    }
    for pairs in alike.values():
        own, steps = zip(*pairs, strict=True)
        with contiguous(own) as dense:
            torch._fused_sgd_(dense, steps, [], **options)


@contextmanager
def contiguous(params: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters as the fused kernels need them, which do not see strides; what they write goes back."""
    dense = [p.contiguous() for p in params]
    yield dense
    for p, done in zip(params, dense, strict=True):
        if done is not p:
            p.copy_(done)
