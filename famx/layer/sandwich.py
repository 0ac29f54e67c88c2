"""A norm before and after each branch, which bounds its output (CogView, arXiv:2105.13290)."""

from collections.abc import Callable

from torch import nn

from famx.layer.prenorm import PreNormLayer
from famx.registry import register


@register
class SandwichLayer(PreNormLayer):
    """`x <- x + norm(attention(norm(x)))`, then `x <- x + norm(feedforward(norm(x)))`.

    Args:
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
        super().__init__(attention, feedforward, norm, dropout=dropout)
        self.attention_output_norm = norm()
        self.feedforward_output_norm = norm()

    def forward(self, x, memory=None, mask=None, state=None):
        """See `Layer.forward`."""
        y = self.attention(self.attention_norm(x), memory, mask, state)
        x = x + self.dropout(self.attention_output_norm(y))
        y = self.feedforward(self.feedforward_norm(x))
        return x + self.dropout(self.feedforward_output_norm(y))
