"""A learned embedding vector for each token."""

from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from famx.frontend.base import Frontend
from famx.notation import Modality
from famx.registry import register


@register
class Tokens(nn.Embedding, Frontend):
    """`x = E[token]`, the entries of E sampled with variance 1 / d_model."""

    modality: ClassVar[Modality] = Modality.TEXT

    def __init__(self, d_model: int, vocab_size: int):
        super().__init__(vocab_size, d_model)
        nn.init.normal_(self.weight, std=d_model**-0.5)

    def forward(  # type: ignore[override]  # a frontend, which is stored as an embedding
        self,
        signal: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"],
        spans: Float[Tensor, "b m 4"] | None = None,
    ) -> tuple[Float[Tensor, "b t d"], Int[Tensor, " b"]]:
        """Returns the vectors of token ids, and `lengths` unchanged; text has no `spans`."""
        return super().forward(signal), lengths

    def n_frames(self, lengths: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Returns the lengths: one frame per token."""
        return lengths
