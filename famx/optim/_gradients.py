"""Checks of parameters and gradients: their dtype and layout, and whether all are finite."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from famx.kernels.tensor_table import supports
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


def decayed_grads(group: Mapping[str, Any]) -> list[Tensor | None]:
    """Returns the gradients of a group, contiguous, plus weight_decay·θ if its decay is coupled.

    They are those of the negative loss if the group has `maximize`. One is None if the gradient is
    absent or has no elements.

    Raises:
        UserError: a gradient is sparse.
    """
    coupled_decay = 0.0 if group.get("decoupled", True) else group["weight_decay"]
    # the most frequent case, without a loop over the gradients
    gradients: list[Tensor | None] = [p.grad for p in group["params"]]
    if not coupled_decay and not group["maximize"] and _are_dense(gradients):
        return gradients
    gradients = []
    for p in group["params"]:
        gradient = dense_grad(p)
        # kernels and spectra do not support empty tensors
        if gradient is None or not gradient.numel():
            gradients.append(None)
            continue
        if group["maximize"]:
            gradient = gradient.neg()
        if coupled_decay:
            gradient = gradient.add(p, alpha=coupled_decay)
        gradients.append(gradient.contiguous())
    return gradients


def _are_dense(gradients: Sequence[Tensor | None]) -> bool:
    """Returns whether gradients are there, contiguous and not empty."""
    present = [g for g in gradients if g is not None]
    if len(present) < len(gradients) or {g.layout for g in present} != {torch.strided}:
        return False
    return all(map(Tensor.is_contiguous, present)) and all(map(Tensor.numel, present))


def non_finite(gradients: Sequence[Tensor | None], params: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Returns 1 if an element of a gradient is not finite, else 0.

    Where famx's kernels do not run, a sum of elements that is not finite gives 1 too.

    Args:
        gradients: those of the parameters; None where one is missing, but not everywhere.
    """
    present = [g for g in gradients if g is not None]
    if supports(params, gradients):
        from famx.kernels.multi_tensor import non_finite as any_non_finite

        return any_non_finite(gradients, params)
    # a sum is the fastest way to read all elements; a non-finite one makes the sum non-finite
    sums = torch.stack([g.sum(dtype=torch.promote_types(g.dtype, torch.float32)) for g in present])
    # 0 times inf or NaN is NaN, which is not equal to 0
    return (sums * 0).sum().ne(0).float()


def with_zeros(gradients: Sequence[Tensor | None], params: Sequence[Tensor]) -> list[Tensor]:
    """Returns the gradients with zeros, which take no memory, in place of missing ones."""
    dense = [gradient for gradient in gradients if gradient is not None]
    if len(dense) == len(gradients):
        return dense
    dense = []
    for gradient, p in zip(gradients, params, strict=True):
        dense.append(p.new_zeros(()).expand(p.shape) if gradient is None else gradient)
    return dense


def presence(
    gradients: Sequence[Tensor | None], device: torch.device
) -> Float[Tensor, " tensors"] | None:
    """Returns 1 for each gradient and 0 for each missing one; None if all are there."""
    flags = tuple([gradient is not None for gradient in gradients])
    return None if all(flags) else _mask(flags, device)


@lru_cache(maxsize=8)
def _mask(flags: tuple[bool, ...], device: torch.device) -> Float[Tensor, " tensors"]:
    return torch.tensor(flags, dtype=torch.float32).to(device, non_blocking=True)


def is_capturing() -> bool:
    """Returns whether a CUDA graph is being captured."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
