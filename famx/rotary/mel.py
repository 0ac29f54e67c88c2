"""RoPE whose frequencies are spaced on the mel scale, as hearing spaces tones (after seed.md's author)."""

from math import log10

from famx.notation import Hertz
from famx.registry import register
from famx.rotary.base import PairRotary, pairs_of


@register
class MelRotary(PairRotary):
    """`x_k <- x_k * exp(i * t * f_k / high)`, the `f_k` in equal steps of `log(1 + f / 700)` from high to low.

    An odd last channel passes unrotated.

    Args:
        high: the tone that stands for 1 radian a position.
        low: the tone of the slowest pair, which turns once in `2 pi high / low` positions.
    """

    def __init__(self, head_dim: int, *, high: Hertz = 8000.0, low: Hertz = 4.0):
        pairs = pairs_of(head_dim, low=low)
        if low >= high:
            raise ValueError(f"low={low} must be less than high={high}")
        top, bottom = log10(1 + high / 700), log10(1 + low / 700)
        steps = [top - (top - bottom) * k / max(pairs - 1, 1) for k in range(pairs)]
        super().__init__(tuple(700 * (10**step - 1) / high for step in steps))
