"""Rotates pairs of channels by an angle that grows with position (Su et al. 2021, arXiv:2104.09864)."""

from famx.registry import register
from famx.rotary.base import PairRotary, geometric, pairs_of


@register
class Rope(PairRotary):
    """`x_k <- x_k * exp(i * t * theta'^(-2k/d))` on pairs of channels, `theta' = theta * rescale^(d/(d-2))`.

    An odd last channel passes unrotated.

    Args:
        theta: the slowest pair turns once in about `2 pi theta` positions.
        rescale: stretches the slow pairs, not the fast ones, to sequences that many times longer (NTK-aware).
        learned: the frequencies are parameters, in radians per position.
    """

    def __init__(
        self, head_dim: int, *, theta: float = 10000.0, rescale: float = 1.0, learned: bool = False
    ):
        pairs = pairs_of(head_dim, theta=theta, rescale=rescale)
        if pairs > 1:
            theta *= rescale ** (pairs / (pairs - 1))
        super().__init__(geometric(pairs, theta), learned)
