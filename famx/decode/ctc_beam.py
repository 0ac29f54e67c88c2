"""CTC prefix beam search: sums over alignments, of several texts at once (arXiv:1408.2873)."""

from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor

from famx.decode._prefix_beam import Hypotheses, prefix_beam_search
from famx.decode.base import FrameDecoder
from famx.registry import register


@register
class CTCBeam(FrameDecoder):
    """text = argmax ln p(text | signal), p summed over all alignments that the search visits.

    The sums of a search never exceed the probability of a text. With a beam that no prefix ever
    leaves, they equal it, and no smaller beam finds a text with a higher one. Between two smaller
    beams, the larger one may end with a lower sum, since a prefix that it adds can replace another
    one whose sum would grow later; and a beam of 1 need not equal the greedy text, whose single
    alignment is the most probable one.

    Args:
        tokenizer: its first token is the blank.
        beam: number of texts that are followed at once.
        blank_threshold: frames whose blank is more probable are passed in one step, as blanks; the
            sum of a text lacks alignments that have a token there, see `skip_blanks`. 1 for none.
    """

    def __init__(self, tokenizer: Tokenizer, *, beam: int = 8, blank_threshold: float = 0.999):
        super().__init__(tokenizer)
        if not 1 <= beam <= 4096:
            raise ValueError(f"beam={beam} must be between 1 and 4096")
        if not 0 < blank_threshold <= 1:
            raise ValueError(f"blank_threshold={blank_threshold} must be above 0 and at most 1")
        self.beam = beam
        self.blank_threshold = blank_threshold

    def search(self, scores: Float[Tensor, "b t v"], lengths: Int[Tensor, " b"]) -> Hypotheses:
        """Returns the texts of the beam with their probabilities, the best first."""
        return prefix_beam_search(scores, lengths, self.beam, self.blank_threshold)

    def decode_tokens(
        self, scores: Float[Tensor, "b t v"], lengths: Int[Tensor, " b"]
    ) -> list[list[int]]:
        return self.search(scores, lengths).best()
