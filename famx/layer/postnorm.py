"""Norm after each sum: attention, then feedforward, as first published (arXiv:1706.03762)."""

from famx.layer.prenorm import PreNormLayer
from famx.registry import register


@register
class PostNormLayer(PreNormLayer):
    """`x <- norm(x + attention(x))`, then `x <- norm(x + feedforward(x))`."""

    def forward(self, x, memory=None, mask=None, state=None):
        """See `Layer.forward`."""
        x = self.attention_norm(x + self.dropout(self.attention(x, memory, mask, state)))
        return self.feedforward_norm(x + self.dropout(self.feedforward(x)))
