"""Learned rotations times ranges of frequencies, moved by what a position holds (seed.md)."""

from math import tau
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from famx.registry import register
from famx.rotary.base import block_diagonal, constant, exact, pairs_of, turn, widened


@register
class LearnedRotations(nn.Module):
    """Pair (r, f) turns by `rotation_r * range_f`, `rotation_r = t * speed_r + min(t, reach) * tanh(W_r x)`.

    Speeds and W are learned; W starts at 0, the speeds evenly up to 1. So content moves a position, in each rotation,
    by at most `reach`, and the first not at all. An odd last channel passes unrotated.

    Args:
        freq_ranges: what each rotation is multiplied by, in radians; as many rotations as fill all pairs.
        reach: in positions; 0 leaves out the content, and scores then depend on the distance alone.
    """

    exempt: ClassVar[dict[str, str]] = {"distance_law": "what a position holds moves it"}

    def __init__(
        self,
        head_dim: int,
        *,
        freq_ranges: tuple[float, ...] = (1.0, 0.1, 0.01, 0.001),
        reach: float = 1.0,
    ):
        super().__init__()
        self.pairs = pairs_of(head_dim)
        if not freq_ranges or min(freq_ranges) <= 0 or reach < 0:
            raise ValueError(
                f"freq_ranges={freq_ranges} must be some numbers above 0, and {reach=} at least 0"
            )
        self.freq_ranges, self.reach = tuple(freq_ranges), reach
        rotations = -(-self.pairs // len(freq_ranges))
        self.speed = nn.Parameter(torch.arange(rotations, 0, -1) / rotations)
        self.weight = nn.Parameter(torch.zeros(rotations, head_dim)) if reach else None

    def forward(self, x: Float[Tensor, "b h t k"], offset: int = 0) -> Float[Tensor, "b h t k"]:
        """Rotates position `offset + t`."""
        speed = exact(self.speed)
        spread = constant(
            _spread, (self.freq_ranges, len(speed), self.pairs), speed.device, speed.dtype
        )
        position = torch.arange(
            offset, offset + x.shape[-2], device=speed.device, dtype=speed.dtype
        )
        angle = torch.outer(position, speed @ spread)
        wide = x.to(widened(x.dtype))
        # what is left of whole turns fits in 32 bits
        angle = (angle - (angle / tau).round() * tau).to(wide)
        if self.weight is not None:
            with torch.autocast(x.device.type, enabled=False):  # would round the angles
                # tanh(a) = 2 sigmoid(2 a) - 1, three times as fast; and so is a product with the positions last
                moved = (2 * self.weight.to(wide) @ wide.transpose(-1, -2)).sigmoid() * 2 - 1
                moved = moved * position.clamp(max=self.reach).to(wide)
                angle = (moved.transpose(-1, -2) @ spread.to(wide)).add_(angle)
        return turn(x, torch.complex(angle.cos(), angle.sin()))


def _spread(
    ranges: tuple[float, ...], rotations: int, pairs: int, device: torch.device
) -> Float[Tensor, "{rotations} {pairs}"]:
    """Each rotation times each range, in this order: the same as an outer product, and faster than one so narrow."""
    blocks = torch.tensor(ranges, dtype=torch.float64, device=device).expand(rotations, 1, -1)
    return block_diagonal(blocks, rotations * len(ranges))[:, :pairs]
