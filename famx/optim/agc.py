"""Adaptive gradient clipping around another optimizer, unit by unit (arXiv:2102.06171)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from famx.optim.around import Around
from famx.registry import register


@torch.no_grad()
def clip(params: Sequence[Tensor], share: float, eps: float = 1e-3) -> Float[Tensor, " params"]:
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
    norms = [_lengths(p.grad) for p in trained]
    sizes = [n.numel() for n in norms]
    floors = [eps * (p.numel() / size) ** 0.5 for p, size in zip(trained, sizes, strict=True)]
    weights = [_lengths(p).clamp(min=floor) for p, floor in zip(trained, floors, strict=True)]
    flat, limits = (torch.cat([x.flatten() for x in tensors]) for tensors in (norms, weights))
    scales = (share * limits / flat).nan_to_num(1.0, posinf=1.0).clamp(max=1.0).split(sizes)
    for p, norm, scale in zip(trained, norms, scales, strict=True):
        p.grad.mul_(scale.view_as(norm))
    found = iter(flat.split(sizes))
    return torch.stack([flat.new_zeros(()) if p.grad is None else next(found).norm() for p in params])


@register
class AGC(Around):
    """The base sees g_i·min(1, clip·max(‖θ_i‖, eps·√n_i) / ‖g_i‖), i the rows of matrices and the output channels of
    convolutions, of n_i entries; a vector is one unit.

    Args:
        params: an optimizer, or parameters or groups over which the base is built.
        momentum: factory of the rule that the base wears.
        spectrum: factory of what that rule measures with.
        base: name of the optimizer.
        lr: its learning rate; its usual one if not given.
        base_lr: another name of `lr`.
        clip: longest gradient of a unit, in units of the unit's own length.
        eps: what each weight counts as at the least.
    """

    def __init__(
        self,
        params: Any,
        momentum: Callable[..., nn.Module] | None = None,
        spectrum: Callable[..., nn.Module] | None = None,
        *,
        base: str = "adamw",
        lr: float | None = None,
        base_lr: float | None = None,
        clip: float = 0.01,
        eps: float = 1e-3,
    ):
        if clip <= 0 or eps <= 0:
            raise ValueError(f"clip={clip} and eps={eps} must be above 0")
        self.clip, self.eps = clip, eps
        super().__init__(params, momentum, spectrum, base=base, lr=base_lr if lr is None else lr)

    def before(self, params: list[Tensor]) -> None:
        self.gradients = [p.grad for p in params]
        for p in params:
            p.grad = p.grad.clone()
        clip(params, self.clip, self.eps)

    def after(self, params: list[Tensor], moved: float | Tensor) -> None:
        for p, gradient in zip(params, self.gradients, strict=True):
            p.grad = gradient
        self.gradients = []


def _lengths(x: Tensor) -> Tensor:
    """Of each unit, in a shape that is broadcast to `x`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if x.ndim < 2:
        return torch.linalg.vector_norm(x, dtype=wide)
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True, dtype=wide)
