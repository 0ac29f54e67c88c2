"""Norms: the interface."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Norm(Protocol):
    """Normalises the channels of each position independently: `(b t d) -> (b t d)`.

    A norm is an `nn.Module`, built with `d_model`, the number of channels.
    """

    def forward(self, x: Float[Tensor, "b t d"], /) -> Float[Tensor, "b t d"]:
        """Returns x with every position normalised over its channels."""
        ...
