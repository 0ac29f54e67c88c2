"""Attention and feedforward side by side on one norm (PaLM, Chowdhery et al. 2022, arXiv:2204.02311)."""

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from famx.layer.base import Dropout
from famx.registry import register


@register
class ParallelLayer(nn.Module):
    """`x <- x + attention(norm(x)) + feedforward(norm(x))`, the same norm.

    Args:
        attention, feedforward, norm: each builds one module.
        dropout: on what is added, in [0, 1).
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
        self.norm, self.attention, self.feedforward = norm(), attention(), feedforward()
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"] | None = None,
        mask: Bool[Tensor, "#b #h #t s"] | None = None,
        state: dict | None = None,
    ) -> Float[Tensor, "b t d"]:
        """See `PreNormLayer.forward`."""
        normed = self.norm(x)
        return x + self.dropout(
            self.attention(normed, memory, mask, state) + self.feedforward(normed)
        )
