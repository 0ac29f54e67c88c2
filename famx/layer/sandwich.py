"""A norm before and after each branch, which bounds what it adds (CogView, Ding et al. 2021, arXiv:2105.13290)."""

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from famx.layer.prenorm import PreNormLayer
from famx.registry import register


@register
class SandwichLayer(PreNormLayer):
    """`x <- x + norm(attention(norm(x)))`, then `x <- x + norm(feedforward(norm(x)))`.

    Args:
        dropout: on what the two branches add, in [0, 1).
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
        self.attended_norm, self.fed_norm = norm(), norm()

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"] | None = None,
        mask: Bool[Tensor, "#b #h #t s"] | None = None,
        state: dict | None = None,
    ) -> Float[Tensor, "b t d"]:
        attended = self.attention(self.attention_norm(x), memory, mask, state)
        x = x + self.dropout(self.attended_norm(attended))
        return x + self.dropout(self.fed_norm(self.feedforward(self.feedforward_norm(x))))
