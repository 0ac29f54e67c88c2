"""Attention and feedforward in parallel after one norm (PaLM, arXiv:2204.02311)."""

from collections.abc import Callable

from torch import nn

from famx.layer.base import Dropout, Layer
from famx.registry import register


@register
class ParallelLayer(Layer):
    """`x <- x + attention(norm(x)) + feedforward(norm(x))`, with one norm for both branches.

    Args:
        attention, feedforward, norm: factories, each of which builds one module.
        dropout: dropout on the sum of both branches, in [0, 1).
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
        self.norm = norm()
        self.attention = attention()
        self.feedforward = feedforward()
        self.dropout = Dropout(dropout)

    def forward(self, x, memory=None, mask=None, state=None):
        """See `Layer.forward`."""
        normed = self.norm(x)
        attended = self.attention(normed, memory, mask, state)
        return x + self.dropout(attended + self.feedforward(normed))
