"""CTC prefix beam search with language models: n-grams (ARPA) or a famx run (arXiv:1408.2873)."""

from pathlib import Path

from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor

from famx.decode._fusion import Fusion
from famx.decode._ngram_fusion import load_ngrams
from famx.decode._prefix_beam import Hypotheses, prefix_beam_search
from famx.decode._run_fusion import LoadRun, RunFusion
from famx.decode.base import FrameDecoder
from famx.registry import register

LM_WEIGHT = 0.5


@register
class CTCBeam(FrameDecoder):
    """text = argmax ln p(text | signal) + lm_weight ln p_lm(text) + length_bonus units(text).

    p(text | signal) is summed over all alignments that the search visits, so it never exceeds the
    probability of the text. With a beam that no prefix ever leaves, the two are equal, and no
    smaller beam finds a text with a higher score. Of two smaller beams, the larger one may end with
    a lower score, since a prefix that it adds can replace another one whose sum would grow later;
    and a beam of 1 need not equal the greedy text, whose single alignment is the most probable one.

    Args:
        tokenizer: its first token is the blank.
        load_run: loads a run of a language model.
        beam: number of texts that are followed at once.
        blank_threshold: frames whose blank is more probable are passed in one step, as blanks; the
            sum of a text lacks alignments that have a token there, see `skip_blanks`. 1 for none.
        lm: a language model, "" for none: an ARPA file, also gzipped, or the folder of a run of
            `task=lm`. A file with the unigram `<space>` or `▁` is of characters, any other of
            words, which are scored where the next word begins and at the end.
        lm_weight: factor of ln p_lm.
        length_bonus: added for each unit of the language model: word, character or token.
    """

    path_options = ("lm",)

    def __init__(
        self,
        tokenizer: Tokenizer,
        load_run: LoadRun,
        *,
        beam: int = 8,
        blank_threshold: float = 0.999,
        lm: str = "",
        lm_weight: float = LM_WEIGHT,
        length_bonus: float = 0.0,
    ):
        super().__init__(tokenizer)
        if not 1 <= beam <= 4096:
            raise ValueError(f"beam={beam} must be between 1 and 4096")
        if not 0 < blank_threshold <= 1:
            raise ValueError(f"blank_threshold={blank_threshold} must be above 0 and at most 1")
        if lm_weight < 0:
            raise ValueError(f"lm_weight={lm_weight} must be at least 0")
        unused = {"lm_weight": (lm_weight, LM_WEIGHT), "length_bonus": (length_bonus, 0)}
        for option, (value, default) in unused.items():
            if value != default and not lm:
                raise ValueError(f"{option}={value} has no effect without decode.lm")
        self.beam = beam
        self.blank_threshold = blank_threshold
        self.fusion: Fusion | None = None
        if lm and Path(lm).is_dir():
            self.fusion = RunFusion(load_run(lm), tokenizer, lm_weight, length_bonus)
        elif lm:
            self.fusion = load_ngrams(lm, tokenizer, lm_weight, length_bonus)

    def search(self, scores: Float[Tensor, "b t v"], lengths: Int[Tensor, " b"]) -> Hypotheses:
        """Returns the texts of the beam with their probabilities, the best first."""
        return prefix_beam_search(scores, lengths, self.beam, self.blank_threshold, self.fusion)

    def decode_tokens(
        self, scores: Float[Tensor, "b t v"], lengths: Int[Tensor, " b"]
    ) -> list[list[int]]:
        return self.search(scores, lengths).best()
