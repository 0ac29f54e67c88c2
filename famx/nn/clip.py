"""Clipping of gradients unit by unit (arXiv:2102.06171)."""

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


@torch.no_grad()
def clip_by_unit_norm(
    params: Sequence[Tensor], share: float, eps: float = 1e-3
) -> Float[Tensor, " params"]:
    """Scales the gradient of each unit down to `share` times the norm of its weights; the norms of tensors before.

    A unit is a row of a matrix, an output channel of a convolution, or a vector whole. Nothing is read from the device.

    Args:
        eps: what each weight counts as at the least, for biases begin at zero.

    Returns:
        Norms of the gradients as they were, 0 where there is none.
    """
    trained = [p for p in params if p.grad is not None]
    if not trained:
        return torch.zeros(len(params))
    gradients = [p.grad for p in trained]
    units = _units(tuple([(p.shape, p.dtype) for p in trained]), eps, trained[0].device)
    lengths, weights = _lengths(gradients, units), _lengths(trained, units)
    scales = (
        torch.maximum(weights, units.floors)
        .mul_(share)
        .div_(lengths)
        .clamp_(max=1.0)
        .nan_to_num_(1.0)
    )
    torch._foreach_mul_(
        gradients, [x.view(s) for x, s in zip(scales.split(units.sizes), units.shapes, strict=True)]
    )
    norms = torch.segment_reduce(
        lengths.square_(), "sum", lengths=units.counts, unsafe=True
    ).sqrt_()
    if len(trained) == len(params):
        return norms
    found = iter(norms)
    return torch.stack([norms.new_zeros(()) if p.grad is None else next(found) for p in params])


class Units(NamedTuple):
    """Of tensors of certain shapes and dtypes.

    Args:
        sizes, counts: units of each tensor.
        shapes: in which one number a unit is broadcast to its tensor.
        norms: over which axes the length of a unit is taken, whether they are kept, in which dtype.
        floors: the least length of each unit's weights.
    """

    sizes: list[int]
    counts: Int[Tensor, " tensors"]
    shapes: list[tuple[int, ...]]
    norms: list[tuple[tuple[int, ...], bool, torch.dtype]]
    floors: Float[Tensor, " units"]


@lru_cache(maxsize=8)
def _units(
    tensors: tuple[tuple[torch.Size, torch.dtype], ...], eps: float, device: torch.device
) -> Units:
    sizes, shapes, norms, floors = [], [], [], []
    for shape, dtype in tensors:
        vector = len(shape) < 2
        sizes.append(1 if vector else shape[0])
        shapes.append(() if vector else (shape[0], *[1] * (len(shape) - 1)))
        axes = (0,) if vector else tuple(range(1, len(shape)))
        norms.append((axes, vector, torch.promote_types(dtype, torch.float32)))
        floors.append(eps * prod(shape if vector else shape[1:]) ** 0.5)
    counts = torch.tensor(sizes, device=device)
    return Units(
        sizes,
        counts,
        shapes,
        norms,
        torch.tensor(floors, device=device).repeat_interleave(counts, output_size=sum(sizes)),
    )


def _lengths(tensors: Sequence[Tensor], units: Units) -> Float[Tensor, " units"]:
    """Of each unit of each tensor."""
    norm = torch.linalg.vector_norm
    return torch.cat(
        [
            norm(x if x.ndim else x.view(1), 2, axes, vector, dtype=dtype)
            for x, (axes, vector, dtype) in zip(tensors, units.norms, strict=True)
        ]
    )
