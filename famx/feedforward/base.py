"""Feedforward blocks: the interface."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class FeedForward(Protocol):
    """Transforms each position independently: `(b t d) -> (b t d)`.

    A feedforward block is an `nn.Module`, built with `d_model`, the number of channels.
    """

    def forward(self, x: Float[Tensor, "b t d"], /) -> Float[Tensor, "b t d"]:
        """Returns the change of x, which the layer adds to it."""
        ...


def inner_width(expansion: float, d_model: int) -> int:
    """Returns the width between the linear maps of a block, `expansion` times `d_model`.

    Raises:
        ValueError: the width is 0.
    """
    width = round(expansion * d_model)
    if width < 1:
        raise ValueError(f"expansion={expansion} leaves no channel of d_model={d_model}")
    return width
