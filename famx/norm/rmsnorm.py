"""Unit root mean square over channels, the mean kept (Zhang and Sennrich 2019, arXiv:1910.07467)."""

from torch import nn

from famx.registry import register


@register
class RMSNorm(nn.RMSNorm):
    """`x / sqrt(mean(x^2) + eps) * weight`.

    Args:
        eps: keeps a zero input finite.
    """

    def __init__(self, d_model: int, *, eps: float = 1e-6):
        super().__init__(d_model, eps)
