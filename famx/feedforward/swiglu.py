"""A linear map, gated by another through a SiLU, and a map back (Shazeer 2020, arXiv:2002.05202)."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from famx.registry import register


@register
class SwiGLU(nn.Module):
    """`W_out (silu(W_gate x) * W_value x)`.

    Args:
        expansion: width between the maps, in units of d_model; 8/3 has the parameters of a plain one with 4.
    """

    def __init__(self, d_model: int, *, expansion: float = 8 / 3):
        super().__init__()
        if (width := round(expansion * d_model)) < 1:
            raise ValueError(f"expansion={expansion} leaves no channel of d_model={d_model}")
        self.gate_value = nn.Linear(d_model, 2 * width)
        self.out = nn.Linear(width, d_model)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        gate, value = self.gate_value(x).chunk(2, dim=-1)
        return self.out(silu(gate) * value)
