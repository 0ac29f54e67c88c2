"""No positions."""

from jaxtyping import Float
from torch import Tensor, nn

from famx.registry import register


@register
class NoRotary(nn.Module):
    """`x <- x`."""

    def __init__(self, head_dim: int):
        super().__init__()

    def forward(self, x: Float[Tensor, "b h t k"], offset: int = 0) -> Float[Tensor, "b h t k"]:
        return x
