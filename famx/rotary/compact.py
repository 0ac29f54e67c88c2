"""Plane rotations without parameters on some of the channels; the others carry content alone (seed.md)."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from famx.registry import register
from famx.rotary.base import PairRotary, geometric, pairs_of


@register
class CompactRotary(PairRotary):
    """`x_k <- x_k * exp(i * t * scale * theta^(-k/n))` on the first n pairs of channels; the others pass unrotated.

    Args:
        rot_count: n; half of the pairs when None.
        scale: radians that the fastest pair turns a position.
        theta: how many times slower the pair after the last would be.
        learned_freq: the frequencies are parameters, in radians per position.
    """

    def __init__(
        self,
        head_dim: int,
        *,
        rot_count: int | None = None,
        scale: float = 1.0,
        theta: float = 10000.0,
        learned_freq: bool = False,
    ):
        pairs = pairs_of(head_dim, scale=scale, theta=theta)
        rot_count = (pairs + 1) // 2 if rot_count is None else rot_count
        if not 1 <= rot_count <= pairs:
            raise ValueError(
                f"rot_count={rot_count} must be from 1 to {pairs}, the pairs of head_dim={head_dim}"
            )
        super().__init__(tuple(scale * f for f in geometric(rot_count, theta)), learned_freq)
        self.still = pairs - rot_count

    def speeds(self) -> tuple[float, ...] | Float[Tensor, "pairs"]:
        # a turn by 0 is exact, and faster than to join what turns and what does not
        if self.frequency is None:
            return self.frequencies + (0.0,) * self.still
        return pad(self.frequency, (0, self.still))
