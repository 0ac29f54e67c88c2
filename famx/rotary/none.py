"""No position embedding."""

from jaxtyping import Float
from torch import Tensor

from famx.registry import register
from famx.rotary.base import Rotary


@register
class NoRotary(Rotary):
    """`x <- x`."""

    def __init__(self, head_dim: int):
        super().__init__()

    def forward(self, x: Float[Tensor, "b h t k"], offset: int = 0) -> Float[Tensor, "b h t k"]:
        """Returns x unchanged."""
        return x
