"""The interface of language models that add to the score of a prefix in a beam search."""

from abc import ABC, abstractmethod

from jaxtyping import Bool, Float64, Int
from torch import Tensor

State = dict[str, Tensor]
"""Values of each prefix of a beam, (b, k, ...), which are reordered with the prefixes."""


class Fusion(ABC):
    """Scores texts token by token: lm_weight ln p(text) + length_bonus units(text).

    Attributes:
        n_candidates: number of tokens with the highest acoustic scores, of which a beam of any size
            considers at least so many; 0 if the scores do not depend on which token follows.
    """

    n_candidates: int = 32

    @abstractmethod
    def start(self, n_rows: int) -> State:
        """Returns the state of the empty prefix, (n_rows, 1, ...)."""

    @abstractmethod
    def next_scores(self, state: State) -> Float64[Tensor, "b k v"]:
        """Returns what each token would add to the score of each prefix."""

    @abstractmethod
    def extend(
        self, state: State, tokens: Int[Tensor, "b k"], is_extended: Bool[Tensor, "b k"]
    ) -> State:
        """Returns the state after a token; prefixes that are not extended keep theirs."""

    @abstractmethod
    def end_scores(self, state: State) -> Float64[Tensor, "b k"]:
        """Returns what the end of the text adds to the score of each prefix."""
