"""A linear map, gated by a second through a SiLU, and a map back (Shazeer, arXiv:2002.05202)."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from famx.feedforward.base import inner_width
from famx.registry import register


@register
class SwiGLU(nn.Module):
    """`W_out (silu(W_gate x) * W_value x)`.

    Args:
        expansion: width between the maps, in units of d_model; with 8/3 it has as many parameters
            as `gelu` with 4.
    """

    def __init__(self, d_model: int, *, expansion: float = 8 / 3):
        super().__init__()
        width = inner_width(expansion, d_model)
        self.gate_value = nn.Linear(d_model, 2 * width)
        self.out = nn.Linear(width, d_model)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """See `FeedForward.forward`."""
        gate, value = self.gate_value(x).chunk(2, dim=-1)
        return self.out(silu(gate) * value)
