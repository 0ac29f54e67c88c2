"""Norm before each branch: attention, then feedforward (Xiong et al. 2020, arXiv:2002.04745)."""

from collections.abc import Callable

from torch import nn

from famx.layer.base import Dropout, Layer
from famx.registry import register


@register
class PreNormLayer(Layer):
    """`x <- x + attention(norm(x))`, then `x <- x + feedforward(norm(x))`.

    Args:
        attention, feedforward, norm: factories, each of which builds one module.
        dropout: dropout on the output of each branch, in [0, 1).
    """

    def __init__(
        self,
        attention: Callable[[], nn.Module],
        feedforward: Callable[[], nn.Module],
        norm: Callable[[], nn.Module],
        *,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.attention_norm = norm()
        self.attention = attention()
        self.feedforward_norm = norm()
        self.feedforward = feedforward()
        self.dropout = Dropout(dropout)

    def forward(self, x, memory=None, mask=None, state=None):
        """See `Layer.forward`."""
        x = x + self.dropout(self.attention(self.attention_norm(x), memory, mask, state))
        return x + self.dropout(self.feedforward(self.feedforward_norm(x)))
