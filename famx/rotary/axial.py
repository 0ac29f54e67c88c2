"""RoPE in two dimensions: half of the channels by row, half by column (arXiv:2403.13298)."""

from typing import ClassVar

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from famx.registry import register
from famx.rotary._channels import rotate
from famx.rotary._tables import phasors, positions
from famx.rotary.base import Rotary, count_pairs, geometric_frequencies


@register
class AxialRotary(Rotary):
    """`x_k <- x_k * exp(i * (t // width) * omega_k)` on the first half of the pairs of channels.

    On the second half it is `exp(i * (t % width) * omega_k)`. Each half has its own geometric
    series of frequencies, from 1 radian per row or column down. An odd last channel passes
    unrotated.

    Args:
        width: positions per row.
        theta: base of each series: the pair after its last one would rotate theta times slower than
            its first.
    """

    exempt: ClassVar[dict[str, str]] = {
        "depends_on_distance_alone": "scores depend on the distances in rows and in columns"
    }

    def __init__(self, head_dim: int, *, width: int = 16, theta: float = 100.0):
        super().__init__()
        pairs = count_pairs(head_dim, minimum=4, theta=theta, width=width)
        self.width = width
        self.by_row = geometric_frequencies(pairs // 2, theta)
        self.by_column = geometric_frequencies(pairs - pairs // 2, theta)

    def forward(self, x: Float[Tensor, "b h t k"], offset: int = 0) -> Float[Tensor, "b h t k"]:
        """See `Rotary.forward`."""
        arguments = (self.by_row, self.by_column, self.width)
        dtype = torch.promote_types(x.dtype, torch.complex64)
        table = positions(_axial_table, arguments, offset, x.shape[-2], x.device, dtype)
        return rotate(x, table)


def _axial_table(
    by_row: tuple[float, ...],
    by_column: tuple[float, ...],
    width: int,
    size: int,
    device: torch.device,
) -> Complex[Tensor, "{size} pairs"]:
    """Returns the factors of all pairs at the positions 0 to size - 1."""
    # integers, so that row and column are exact
    position = torch.arange(size, device=device)
    row_frequency = torch.tensor(by_row, dtype=torch.float64, device=device)
    column_frequency = torch.tensor(by_column, dtype=torch.float64, device=device)
    rows = phasors(position // width, row_frequency)
    columns = phasors(position % width, column_frequency)
    return torch.cat((rows, columns), dim=-1)
