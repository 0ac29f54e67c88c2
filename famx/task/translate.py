"""Translation: text to text, by an encoder and a decoder with attention (Vaswani et al. 2017)."""

from collections.abc import Callable, Sequence
from typing import ClassVar

from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor

from famx.nn.batch import Batch
from famx.notation import Modality, Subwords
from famx.registry import register
from famx.task._decoder_task import DecoderTask
from famx.task._next_tokens import check_label_smoothing, next_token_loss
from famx.task._translation import BleuWords, bleu, chrf
from famx.task._wer import aligned_differences
from famx.task.base import Decoder, Score


@register
class Translate(DecoderTask):
    """`loss = -sum_u log p(y_u | y_<u, source) / tokens`, with label smoothing.

    The sum is over the tokens of the target and its end. Source and target share one tokenizer,
    which is learned from both sides of the training data. The decoder is that of `task=seq2seq`;
    there is no CTC, since a translation may be longer than its source and in another order.

    Args:
        tokenizer: its first token is the blank, which no text has; the second one begins and ends
            each text.
        decode: factory of the decoder.
        vocab_size: number of tokens of the tokenizer; 0 for characters. About 2,000 are better than
            more for little data (Sennrich & Zhang 2019, arXiv:1905.11901).
        subwords: how the tokens are learned: by byte-pair encoding, or as a unigram model.
        label_smoothing: share of the target that is divided equally among all tokens, from 0 to
            below 1 (Szegedy et al. 2016).
        bleu_words: how sacrebleu divides a sentence into the words of BLEU; "13a" is for languages
            with spaces, "zh" for Chinese, "char" takes each character as a word.
    """

    modality: ClassVar[Modality] = Modality.TEXT
    decoder_kind: ClassVar[str] = "attention"
    selection_metric: ClassVar[str] = "bleu"
    higher_is_better: ClassVar[tuple[str, ...]] = ("bleu", "chrf")
    default_parts: ClassVar[dict[str, str]] = {
        "data": "pairs",
        "frontend": "tokens",
        "decode": "seq2seq_greedy",
    }

    def __init__(
        self,
        tokenizer: Tokenizer,
        decode: Callable[..., Decoder] | None = None,
        *,
        vocab_size: int = 2000,
        subwords: Subwords = "bpe",
        label_smoothing: float = 0.1,
        bleu_words: BleuWords = "13a",
    ):
        check_label_smoothing(label_smoothing)
        super().__init__(tokenizer, decode)
        self.vocab_size = vocab_size
        self.subwords = subwords
        self.label_smoothing = label_smoothing
        self.bleu_words = bleu_words

    def count(self, batch: Batch) -> int:
        """Counts the target tokens, without the ends of texts."""
        return int(batch.target_lengths.sum())

    def loss_of_outputs(
        self,
        frame_scores: Float[Tensor, "b t d"],
        lengths: Int[Tensor, " b"],
        text_scores: Float[Tensor, "b u v"],
        batch: Batch,
    ) -> Float[Tensor, ""]:
        return next_token_loss(text_scores, batch, self.label_smoothing)

    def score(self, references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, Score]:
        """Computes BLEU and chrF, of both of which higher is better."""
        return {
            "bleu": bleu(references, hypotheses, self.bleu_words),
            "chrf": chrf(references, hypotheses),
        }

    def differences(
        self, ids: Sequence[str], references: Sequence[str], hypotheses: Sequence[str]
    ) -> str:
        """Returns the words of each translation unlike its reference, below those of the latter."""
        return aligned_differences(ids, references, hypotheses)
