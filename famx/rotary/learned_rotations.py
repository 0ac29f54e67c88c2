"""Learned rotations times ranges of frequencies, shifted by the content of a position (seed.md)."""

from math import ceil, tau
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from famx.registry import register
from famx.rotary._channels import block_diagonal, compute_dtype, rotate
from famx.rotary._tables import constant, to_float64
from famx.rotary.base import Rotary, count_pairs


@register
class LearnedRotations(Rotary):
    """Rotates pair (r, f) of channels by the angle `rotation_r * range_f`.

    `rotation_r = t * speed_r + min(t, reach) * tanh(W_r x)`

    Speeds and W are learned; W is 0 at first, the speeds are evenly spaced up to `scale`. Content
    thus shifts a position, in each rotation, by at most `reach`, and the first position not at all.
    An odd last channel passes unrotated.

    Args:
        freq_ranges: factors of each rotation, in radians.
        rot_count: number of rotations; as many as are needed for all pairs of channels when None.
            Pairs that no rotation turns pass unrotated.
        scale: initial speed of the fastest rotation.
        reach: largest shift by content, in positions; with 0 there is none, and scores depend on
            the distance alone.
    """

    exempt: ClassVar[dict[str, str]] = {
        "depends_on_distance_alone": "the content of a position shifts it"
    }

    def __init__(
        self,
        head_dim: int,
        *,
        freq_ranges: tuple[float, ...] = (1.0, 0.1, 0.01, 0.001),
        rot_count: int | None = None,
        scale: float = 1.0,
        reach: float = 1.0,
    ):
        super().__init__()
        self.pairs = count_pairs(head_dim, scale=scale)
        if not freq_ranges or min(freq_ranges) <= 0:
            raise ValueError(f"freq_ranges={freq_ranges} must be one or more numbers above 0")
        if reach < 0:
            raise ValueError(f"reach={reach} must be at least 0")
        self.freq_ranges = tuple(freq_ranges)
        self.reach = reach
        most = ceil(self.pairs / len(freq_ranges))
        rotations = most if rot_count is None else rot_count
        if not 1 <= rotations <= most:
            raise ValueError(
                f"rot_count={rot_count} must be from 1 to {most}: {len(freq_ranges)} freq_ranges "
                f"for the {self.pairs} pairs of head_dim={head_dim}"
            )
        self.speed = nn.Parameter(scale * (torch.arange(rotations, 0, -1) / rotations))
        self.weight = nn.Parameter(torch.zeros(rotations, head_dim)) if reach else None

    def forward(self, x: Float[Tensor, "b h t k"], offset: int = 0) -> Float[Tensor, "b h t k"]:
        """See `Rotary.forward`."""
        # angles by position, in 64 bits
        speed = to_float64(self.speed)
        arguments = (self.freq_ranges, len(speed), self.pairs)
        ranges = constant(_range_matrix, arguments, speed.device, speed.dtype)
        stop = offset + x.shape[-2]
        position = torch.arange(offset, stop, device=speed.device, dtype=speed.dtype)
        angle = torch.outer(position, speed @ ranges)
        # without its full turns, an angle is exact in 32 bits
        wide = x.to(compute_dtype(x.dtype))
        angle = (angle - (angle / tau).round() * tau).to(wide)
        # shifts by content
        if self.weight is not None:
            with torch.autocast(x.device.type, enabled=False):  # would round the angles
                # tanh(a) as 2 sigmoid(2 a) - 1 is three times as fast, and so is a product with the
                # positions in the last axis
                shift = (2 * self.weight.to(wide) @ wide.transpose(-1, -2)).sigmoid() * 2 - 1
                shift = shift * position.clamp(max=self.reach).to(wide)
                angle = (shift.transpose(-1, -2) @ ranges.to(wide)).add_(angle)
        return rotate(x, torch.complex(angle.cos(), angle.sin()))


def _range_matrix(
    ranges: tuple[float, ...], rotations: int, pairs: int, device: torch.device
) -> Float[Tensor, "{rotations} {pairs}"]:
    """Returns the matrix that multiplies each rotation by each range, in the order of the pairs.

    It is 0 for pairs that no rotation turns.
    A product with it equals an outer product, and is faster for so few columns.
    """
    blocks = torch.tensor(ranges, dtype=torch.float64, device=device).expand(rotations, 1, -1)
    return block_diagonal(blocks, max(pairs, rotations * len(ranges)))[:, :pairs]
