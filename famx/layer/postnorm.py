"""Add first, then norm: attention, then feedforward, as the first transformers did (arXiv:1706.03762)."""

from jaxtyping import Bool, Float
from torch import Tensor

from famx.layer.prenorm import PreNormLayer
from famx.registry import register


@register
class PostNormLayer(PreNormLayer):
    """`x <- norm(x + attention(x))`, then `x <- norm(x + feedforward(x))`."""

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"] | None = None,
        mask: Bool[Tensor, "#b #h #t s"] | None = None,
        state: dict | None = None,
    ) -> Float[Tensor, "b t d"]:
        x = self.attention_norm(x + self.dropout(self.attention(x, memory, mask, state)))
        return self.feedforward_norm(x + self.dropout(self.feedforward(x)))
