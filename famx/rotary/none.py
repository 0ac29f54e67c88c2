"""No positions."""

from jaxtyping import Float
from torch import Tensor, nn

from famx.registry import register


@register
class NoRotary(nn.Module):
    """`x <- x`."""

    def forward(self, x: Float[Tensor, "b h t k"], offset: int = 0) -> Float[Tensor, "b h t k"]:
        return x
