"""Checks of parameters and gradients: their dtype and layout, and whether all are finite."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from famx.notation import UserError


def require_real_floats(params: Sequence[Tensor], name: str) -> None:
    """Refuses complex and integer parameters of the optimizer `name`.

    Raises:
        ValueError: a parameter has such a dtype.
    """
    for p in params:
        if not p.is_floating_point():
            raise ValueError(
                f"a parameter has the dtype {p.dtype}, but {name} takes real floating-point ones"
            )


def dense_grad(param: Tensor) -> Tensor | None:
    """Returns the gradient of a parameter.

    Raises:
        UserError: the gradient is sparse.
    """
    gradient = param.grad
    if gradient is not None and gradient.layout is not torch.strided:
        raise UserError(
            f"a gradient has the layout {gradient.layout}, but this optimizer takes dense ones: "
            "build the layer with sparse=False"
        )
    return gradient


def decayed_grad(param: Tensor, group: Mapping[str, Any]) -> Tensor | None:
    """Returns the gradient, contiguous, plus weight_decay·θ if the group's decay is coupled.

    It is None if the gradient is absent or has no elements.
    """
    gradient = dense_grad(param)
    # kernels and spectra do not support empty tensors
    if gradient is None or not gradient.numel():
        return None
    if group["weight_decay"] and not group.get("decoupled", True):
        gradient = gradient.add(param, alpha=group["weight_decay"])
    return gradient.contiguous()


def non_finite(gradients: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Returns 1 if an element of a gradient, or the sum of its elements, is not finite, else 0."""
    # a sum is the fastest way to read all elements; a non-finite one makes the sum non-finite
    sums = torch.stack(
        [g.sum(dtype=torch.promote_types(g.dtype, torch.float32)) for g in gradients]
    )
    # 0 times inf or NaN is NaN, which is not equal to 0
    return (sums * 0).sum().ne(0).float()


def is_capturing() -> bool:
    """Returns whether a CUDA graph is being captured."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
