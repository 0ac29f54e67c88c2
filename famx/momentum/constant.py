"""One momentum for all: the control without which no claim about a rule means anything."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from famx.momentum.base import Momentum
from famx.notation import TensorInfo
from famx.registry import register


@register
class Constant(Momentum):
    """beta for every tensor; its own base momentum where beta is not given.

    Args:
        beta: in [0, 1).
    """

    def __init__(self, tensors: Sequence[TensorInfo], *, beta: float | None = None):
        super().__init__(
            tensors if beta is None else [info._replace(base=beta) for info in tensors]
        )

    def forward(self, gradients: Sequence[Tensor], step: int | Tensor) -> Float[Tensor, " tensors"]:
        return self.base
