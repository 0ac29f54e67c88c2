"""Zero mean and unit variance over channels (Ba et al. 2016, arXiv:1607.06450)."""

from torch import nn

from famx.registry import register


@register
class LayerNorm(nn.LayerNorm):
    """`(x - mean) / sqrt(var + eps) * weight + bias`.

    Args:
        eps: added to the variance, so that a constant input stays finite.
    """

    def __init__(self, d_model: int, *, eps: float = 1e-5):
        super().__init__(d_model, eps)
