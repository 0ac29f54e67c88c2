"""One momentum for all tensors: the control for every other rule."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from famx.momentum.base import MomentumRule
from famx.notation import TensorInfo
from famx.registry import register


@register
class Constant(MomentumRule):
    """a = beta for every tensor, or its base momentum if beta is None.

    Args:
        beta: the momentum, in [0, 1).
    """

    def __init__(self, tensors: Sequence[TensorInfo], *, beta: float | None = None):
        if beta is not None:
            tensors = [info._replace(base=beta) for info in tensors]
        super().__init__(tensors)

    def forward(self, gradients: Sequence[Tensor], step: int | Tensor) -> Float[Tensor, " tensors"]:
        """See `MomentumRule.forward`."""
        return self.base
