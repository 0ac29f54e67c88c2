"""Two linear maps around a GELU or another activation (Hendrycks and Gimpel, arXiv:1606.08415)."""

from typing import Literal

from torch import nn

from famx.feedforward.base import inner_width
from famx.registry import register

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "selu": nn.SELU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "mish": nn.Mish,
}


@register
class GeluFeedforward(nn.Sequential):
    """`W_2 activation(W_1 x)`.

    Args:
        expansion: width between the maps, in units of d_model.
        activation: the function between the maps.
    """

    def __init__(
        self,
        d_model: int,
        *,
        expansion: float = 4.0,
        activation: Literal["gelu", "relu", "selu", "leaky_relu", "silu", "elu", "mish"] = "gelu",
    ):
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation} is not one of {', '.join(ACTIVATIONS)}")
        width = inner_width(expansion, d_model)
        super().__init__(
            nn.Linear(d_model, width), ACTIVATIONS[activation](), nn.Linear(width, d_model)
        )
