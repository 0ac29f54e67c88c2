"""Two linear maps around a GELU, or around another activation (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""

from typing import Literal

from torch import nn

from famx.registry import register

ACTIVATIONS = {
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
        if (width := round(expansion * d_model)) < 1:
            raise ValueError(f"expansion={expansion} leaves no channel of d_model={d_model}")
        super().__init__(
            nn.Linear(d_model, width), ACTIVATIONS[activation](), nn.Linear(width, d_model)
        )
