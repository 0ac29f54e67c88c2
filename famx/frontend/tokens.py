"""A learned vector for each token."""

from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from famx.registry import register


@register
class Tokens(nn.Embedding):
    """`x = E[token]`, the entries of E drawn with variance 1 / d_model."""

    unit: ClassVar[str] = "tokens"

    def __init__(self, d_model: int, vocab_size: int):
        super().__init__(vocab_size, d_model)
        nn.init.normal_(self.weight, std=d_model**-0.5)

    def forward(
        self, signal: Int[Tensor, "b t"], lengths: Int[Tensor, "b"], spans: None = None
    ) -> tuple[Float[Tensor, "b t d"], Int[Tensor, "b"]]:
        """Embeds ids; `lengths` pass unchanged."""
        return super().forward(signal), lengths
