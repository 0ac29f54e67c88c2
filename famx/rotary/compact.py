"""RoPE on some of the channels, with adjustable speeds; the others do not rotate (seed.md)."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from famx.registry import register
from famx.rotary.base import PairRotary, count_pairs, geometric_frequencies, scaled


@register
class CompactRotary(PairRotary):
    """`x_k <- x_k * exp(i * t * scale * theta^(-k/n))` on the first n pairs of channels.

    The other channels pass unrotated.

    Args:
        rot_count: n; half of the pairs when None.
        scale: frequency of the fastest pair, in radians per position.
        theta: base of the series: the pair after the last one would rotate theta times slower than
            the first.
        learned_freq: whether the frequencies are parameters, in radians per position.
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
        pairs = count_pairs(head_dim, scale=scale, theta=theta)
        if rot_count is None:
            rot_count = (pairs + 1) // 2
        if not 1 <= rot_count <= pairs:
            raise ValueError(
                f"rot_count={rot_count} must be from 1 to {pairs}, the pairs of head_dim={head_dim}"
            )
        super().__init__(scaled(geometric_frequencies(rot_count, theta), scale), learned_freq)
        self.unrotated = pairs - rot_count

    def angular_frequencies(self) -> tuple[float, ...] | Float[Tensor, " pairs"]:
        """Returns the frequencies of all pairs, 0 for those that pass unrotated."""
        # a rotation by 0 is exact, and faster than joining rotated and unrotated channels
        if self.frequency is None:
            return self.frequencies + (0.0,) * self.unrotated
        return pad(self.frequency, (0, self.unrotated))
