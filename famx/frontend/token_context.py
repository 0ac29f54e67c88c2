"""A learned vector for each token, to which a convolution adds a function of its neighbours."""

from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu

from famx.frontend.base import Frontend
from famx.frontend.tokens import Tokens
from famx.nn.masks import length_mask
from famx.notation import Modality
from famx.registry import register

MAX_CONTEXT = 1001


@register
class TokenContext(Frontend):
    """`x + gelu(conv(x))`, x = E[token]: words with the words around them, for whole sentences.

    A small corpus has many n-grams that decide, which one convolution learns from fewer sentences
    than attention (Kim 2014, arXiv:1408.5882). All positions after the end of a sentence are zero.

    Args:
        context: width of the convolution in tokens, odd.
        dropout: share of the entries of x that training sets to 0, from 0 to below 1.
        token_dropout: share of the positions at which training sets x to 0, from 0 to below 1.
    """

    modality: ClassVar[Modality] = Modality.TEXT
    sees_later: ClassVar[bool] = True

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        *,
        context: int = 5,
        dropout: float = 0.0,
        token_dropout: float = 0.0,
    ):
        super().__init__()
        if not 1 <= context <= MAX_CONTEXT or context % 2 == 0:
            raise ValueError(f"context={context} must be odd and at most {MAX_CONTEXT:,}")
        self.tokens = Tokens(d_model, vocab_size, dropout=dropout, token_dropout=token_dropout)
        self.context = nn.Conv1d(d_model, d_model, context, padding=context // 2)

    def forward(
        self,
        signal: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"],
        spans: Float[Tensor, "b m 4"] | None = None,
    ) -> tuple[Float[Tensor, "b t d"], Int[Tensor, " b"]]:
        """Returns the vectors of token ids, and `lengths` unchanged; text has no `spans`."""
        x, lengths = self.tokens(signal, lengths)
        x = x * length_mask(lengths, x.shape[1])[..., None]
        return x + gelu(self.context(x.mT)).mT, lengths

    def n_frames(self, lengths: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Returns the lengths: one frame per token."""
        return lengths
