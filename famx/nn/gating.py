"""Hard gates with a gradient."""

from jaxtyping import Float
from torch import Tensor


def straight_through(
    p: Float[Tensor, "..."], threshold: float | Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Returns 1 where `p > threshold`, else 0, with the gradient of p (arXiv:1308.3432)."""
    return p + ((p > threshold).to(p) - p).detach()
