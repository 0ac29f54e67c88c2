"""Norm first, then add: attention, then feedforward (Xiong et al. 2020, arXiv:2002.04745)."""

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from famx.layer.base import Dropout
from famx.registry import register


@register
class PreNormLayer(nn.Module):
    """`x <- x + attention(norm(x))`, then `x <- x + feedforward(norm(x))`.

    Args:
        attention, feedforward, norm: each builds one module.
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
        super().__init__()
        self.attention_norm, self.attention = norm(), attention()
        self.feedforward_norm, self.feedforward = norm(), feedforward()
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"] | None = None,
        mask: Bool[Tensor, "#b #h #t s"] | None = None,
        state: dict | None = None,
    ) -> Float[Tensor, "b t d"]:
        """Attends to `memory` (to `x` when None) where `mask` is True."""
        x = x + self.dropout(self.attention(self.attention_norm(x), memory, mask, state))
        return x + self.dropout(self.feedforward(self.feedforward_norm(x)))
