"""Unit root mean square over channels, not centred (Zhang and Sennrich 2019, arXiv:1910.07467)."""

from torch import nn

from famx.registry import register


@register
class RMSNorm(nn.RMSNorm):
    """`x / sqrt(mean(x^2) + eps) * weight`.

    Args:
        eps: added to the mean square, so that a zero input stays finite.
    """

    def __init__(self, d_model: int, *, eps: float = 1e-6):
        super().__init__(d_model, eps)
