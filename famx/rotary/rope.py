"""Rotates pairs of channels by an angle proportional to position (Su et al., arXiv:2104.09864)."""

from famx.registry import register
from famx.rotary.base import PairRotary, count_pairs, geometric_frequencies


@register
class Rope(PairRotary):
    """`x_k <- x_k * exp(i * t * theta'^(-2k/d))`, `theta' = theta * rescale^(d/(d-2))`.

    k counts the pairs of neighbouring channels. An odd last channel passes unrotated.

    Args:
        theta: the slowest pair makes a full turn in about `2 pi theta` positions.
        rescale: stretches the slow pairs, not the fast ones, to sequences this many times as long
            (NTK-aware scaling).
        learned: whether the frequencies are parameters, in radians per position.
    """

    def __init__(
        self, head_dim: int, *, theta: float = 10000.0, rescale: float = 1.0, learned: bool = False
    ):
        pairs = count_pairs(head_dim, theta=theta, rescale=rescale)
        # a single pair is the fastest one, which is not rescaled
        if pairs > 1:
            theta *= rescale ** (pairs / (pairs - 1))
        super().__init__(geometric_frequencies(pairs, theta), learned)
