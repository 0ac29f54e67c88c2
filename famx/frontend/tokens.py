"""A learned embedding vector for each token."""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import dropout

from famx.frontend.base import Frontend
from famx.notation import Modality
from famx.registry import register


@register
class Tokens(nn.Embedding, Frontend):
    """`x = E[token]`, the entries of E sampled with variance 1 / d_model.

    Args:
        dropout: share of the entries of x that training sets to 0, from 0 to below 1.
        token_dropout: share of the positions at which training sets x to 0, from 0 to below 1
            (word dropout, Iyyer et al. 2015, https://aclanthology.org/P15-1162).
    """

    modality: ClassVar[Modality] = Modality.TEXT

    def __init__(
        self, d_model: int, vocab_size: int, *, dropout: float = 0.0, token_dropout: float = 0.0
    ):
        for name, share in (("dropout", dropout), ("token_dropout", token_dropout)):
            if not 0 <= share < 1:
                raise ValueError(f"{name}={share} must be from 0 to below 1")
        super().__init__(vocab_size, d_model)
        self.dropout = dropout
        self.token_dropout = token_dropout
        nn.init.normal_(self.weight, std=d_model**-0.5)

    def forward(  # type: ignore[override]  # a frontend, which is stored as an embedding
        self,
        signal: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"],
        spans: Float[Tensor, "b m 4"] | None = None,
    ) -> tuple[Float[Tensor, "b t d"], Int[Tensor, " b"]]:
        """Returns the vectors of token ids, and `lengths` unchanged; text has no `spans`."""
        x = super().forward(signal)
        # without them no random numbers are drawn
        if self.training and self.token_dropout:
            x = x * dropout(torch.ones_like(x[..., :1]), self.token_dropout)
        if self.training and self.dropout:
            x = dropout(x, self.dropout)
        return x, lengths

    def n_frames(self, lengths: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Returns the lengths: one frame per token."""
        return lengths
