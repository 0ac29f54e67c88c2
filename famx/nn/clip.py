"""Adaptive gradient clipping: bounds the gradient of each unit (arXiv:2102.06171)."""

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from famx.kernels.tensor_table import supports


@torch.no_grad()
def clip_by_unit_norm(
    params: Sequence[Tensor], max_ratio: float, eps: float = 1e-3
) -> Float[Tensor, " params"]:
    """Scales the gradient of each unit down to `max_ratio` times the norm of the unit's weights.

    A unit is a row of a matrix, an output channel of a convolution, or a vector. No value is read
    from the device.

    Args:
        eps: lower bound of the RMS of a unit's weights, since biases start at zero.

    Returns:
        The norm of each parameter's gradient before clipping, 0 where it has none.
    """
    all_gradients = [p.grad for p in params]
    if supports(params, all_gradients):
        return _clip_by_kernel(params, all_gradients, max_ratio, eps)
    # parameters with a gradient
    trained = []
    gradients = []
    for p in params:
        if p.grad is not None:
            trained.append(p)
            gradients.append(p.grad)
    if not trained:
        return torch.zeros(len(params))
    units = _units(tuple([(p.shape, p.dtype) for p in trained]), eps, trained[0].device)

    # one scale for each unit, at most 1
    gradient_norms = _unit_norms(gradients, units)
    weight_norms = _unit_norms(trained, units)
    scales = torch.maximum(weight_norms, units.min_norms)
    scales = scales.mul_(max_ratio).div_(gradient_norms).clamp_(max=1.0).nan_to_num_(1.0)

    # scale the gradients
    scale_by_tensor = []
    for scale, shape in zip(scales.split(units.counts), units.shapes, strict=True):
        scale_by_tensor.append(scale.view(shape))
    torch._foreach_mul_(gradients, scale_by_tensor)

    # norm of each gradient, from the squared norms of its units
    norms = torch.segment_reduce(
        gradient_norms.square_(), "sum", lengths=units.counts_tensor, unsafe=True
    ).sqrt_()
    if len(trained) == len(params):
        return norms
    # zeros for parameters without a gradient
    remaining = iter(norms)
    all_norms = []
    for p in params:
        all_norms.append(norms.new_zeros(()) if p.grad is None else next(remaining))
    return torch.stack(all_norms)


def _clip_by_kernel(
    params: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    max_ratio: float,
    eps: float,
) -> Float[Tensor, " params"]:
    """Clips as `clip_by_unit_norm` in a launch for all tensors and one for their norms."""
    from famx.kernels.unit_clip import clip

    # the kernel reads and writes contiguous tensors
    present = [gradient for gradient in gradients if gradient is not None]
    if all(map(Tensor.is_contiguous, [*params, *present])):
        return clip(params, gradients, max_ratio, eps)
    dense = [g if g is None else g.contiguous() for g in gradients]
    norms = clip([p.contiguous() for p in params], dense, max_ratio, eps)
    for gradient, result in zip(gradients, dense, strict=True):
        if gradient is not None and result is not None and result is not gradient:
            gradient.copy_(result)
    return norms


class Units(NamedTuple):
    """The units of tensors with certain shapes and dtypes.

    Args:
        counts, counts_tensor: number of units of each tensor.
        shapes: shape in which one value per unit broadcasts to the tensor.
        reductions: arguments of each tensor's norm: axes, keepdim and dtype.
        min_norms: lower bound of the norm of each unit's weights.
    """

    counts: list[int]
    counts_tensor: Int[Tensor, " tensors"]
    shapes: list[tuple[int, ...]]
    reductions: list[tuple[tuple[int, ...], bool, torch.dtype]]
    min_norms: Float[Tensor, " units"]


@lru_cache(maxsize=8)
def _units(
    tensors: tuple[tuple[torch.Size, torch.dtype], ...], eps: float, device: torch.device
) -> Units:
    counts: list[int] = []
    shapes: list[tuple[int, ...]] = []
    reductions: list[tuple[tuple[int, ...], bool, torch.dtype]] = []
    min_norms: list[float] = []
    for shape, dtype in tensors:
        # half precision has too few digits for norms
        wide = torch.promote_types(dtype, torch.float32)
        if len(shape) < 2:
            # a vector or a scalar is one unit
            counts.append(1)
            shapes.append(())
            reductions.append(((0,), True, wide))
            min_norms.append(eps * prod(shape) ** 0.5)
        else:
            # all axes but the first are reduced
            counts.append(shape[0])
            shapes.append((shape[0], *[1] * (len(shape) - 1)))
            reductions.append((tuple(range(1, len(shape))), False, wide))
            min_norms.append(eps * prod(shape[1:]) ** 0.5)
    # one bound per unit; `output_size` avoids a device synchronization
    counts_tensor = torch.tensor(counts, device=device)
    floors = torch.tensor(min_norms, device=device)
    floors = floors.repeat_interleave(counts_tensor, output_size=sum(counts))
    return Units(counts, counts_tensor, shapes, reductions, floors)


def _unit_norms(tensors: Sequence[Tensor], units: Units) -> Float[Tensor, " units"]:
    """Returns the norm of each unit of each tensor."""
    norms = []
    for tensor, (axes, keepdim, dtype) in zip(tensors, units.reductions, strict=True):
        # a scalar has no axis to reduce
        vector = tensor if tensor.ndim else tensor.view(1)
        norms.append(torch.linalg.vector_norm(vector, 2, axes, keepdim, dtype=dtype))
    return torch.cat(norms)
