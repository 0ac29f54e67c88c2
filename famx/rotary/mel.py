"""RoPE with frequencies spaced on the mel scale of hearing (after the author of seed.md)."""

from math import log10

from famx.notation import Hertz
from famx.registry import register
from famx.rotary.base import PairRotary, count_pairs


@register
class MelRotary(PairRotary):
    """`x_k <- x_k * exp(i * t * f_k / high)`, the `f_k` in equal steps of `log(1 + f / 700)`.

    The `f_k` fall from high to low. An odd last channel passes unrotated.

    Args:
        high: frequency that stands for 1 radian per position, in Hz.
        low: frequency of the slowest pair, in Hz; it makes a full turn in `2 pi high / low`
            positions.
    """

    def __init__(self, head_dim: int, *, high: Hertz = 8000.0, low: Hertz = 4.0):
        pairs = count_pairs(head_dim, low=low)
        if low >= high:
            raise ValueError(f"low={low} must be less than high={high}")
        # from hertz to mel, equal steps, and back to radians per position
        top = log10(1 + high / 700)
        bottom = log10(1 + low / 700)
        mels = [top - (top - bottom) * k / max(pairs - 1, 1) for k in range(pairs)]
        super().__init__(tuple(700 * (10**mel - 1) / high for mel in mels))
