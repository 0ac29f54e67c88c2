"""Hard gates with a gradient."""

from jaxtyping import Float
from torch import Tensor


def straight_through(
    p: Float[Tensor, "..."], threshold: float | Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """1 where `p > threshold`, else 0, with the gradient of p (straight-through)."""
    return p + ((p > threshold).to(p) - p).detach()
