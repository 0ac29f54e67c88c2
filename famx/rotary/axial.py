"""RoPE in two dimensions: half of the channels turn by a position's row, half by its column (arXiv:2403.13298)."""

from typing import ClassVar

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from famx.registry import register
from famx.rotary.base import first, geometric, pairs_of, phasors, turn


@register
class AxialRotary(nn.Module):
    """`x_k <- x_k * exp(i * (t // width) * omega_k)` on the first half of the pairs, `(t % width)` on the second.

    Each half has a ladder of frequencies of its own, from 1 down. An odd last channel passes unrotated.

    Args:
        width: positions a row.
        theta: how many times slower the pair after the last of a half would turn.
    """

    exempt: ClassVar[dict[str, str]] = {
        "distance_law": "scores depend on the distances in rows and in columns"
    }

    def __init__(self, head_dim: int, *, width: int = 16, theta: float = 100.0):
        super().__init__()
        pairs = pairs_of(head_dim, least=4, theta=theta, width=width)
        self.width = width
        self.by_row, self.by_column = (
            geometric(pairs // 2, theta),
            geometric(pairs - pairs // 2, theta),
        )

    def forward(self, x: Float[Tensor, "b h t k"], offset: int = 0) -> Float[Tensor, "b h t k"]:
        """Rotates position `offset + t`."""
        seen = offset, x.shape[-2], x.device, torch.promote_types(x.dtype, torch.complex64)
        return turn(x, first(_grid, (self.by_row, self.by_column, self.width), *seen))


def _grid(
    by_row: tuple[float, ...],
    by_column: tuple[float, ...],
    width: int,
    size: int,
    device: torch.device,
) -> Complex[Tensor, "{size} pairs"]:
    position = torch.arange(size, device=device)
    row, column = (
        torch.tensor(speeds, dtype=torch.float64, device=device) for speeds in (by_row, by_column)
    )
    return torch.cat((phasors(position // width, row), phasors(position % width, column)), dim=-1)
