"""Two linear maps around an activation, gated per position (seed.md: MLP of MyelinatedLayer)."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from famx.feedforward.gelu import GeluFeedforward
from famx.registry import register


@register
class GatedFeedforward(nn.Module):
    """`sigmoid(w x) W_2 activation(W_1 x)`, one gate per position.

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
        super().__init__()
        self.gate = nn.Linear(d_model, 1)
        self.mlp = GeluFeedforward(d_model, expansion=expansion, activation=activation)
        # initially open, since a closed gate passes only small gradients
        nn.init.constant_(self.gate.bias, 1.0)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """See `FeedForward.forward`."""
        return self.gate(x).sigmoid() * self.mlp(x)
