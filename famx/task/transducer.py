"""Speech to text by a transducer, trained jointly with CTC (Graves 2012, arXiv:1211.3711)."""

from collections.abc import Callable
from typing import ClassVar

from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor

from famx.nn.batch import Batch
from famx.nn.encoding import BLANK_ID
from famx.nn.torchaudio import import_torchaudio
from famx.notation import Subwords
from famx.registry import register
from famx.task._joint_ctc import JointCTC
from famx.task.base import Decoder


@register
class Transducer(JointCTC):
    """loss = w CTC + (1 - w) L, w = `ctc_weight`; CTC is the loss of `task=ctc` on the encoder.

    `L = -log p(y | signal) / tokens`, p summed over all paths through the lattice of frames and
    tokens; see `famx.nn.transducer`. The lattice has `rows * frames * tokens` points, so that a
    step needs more memory than that of another task. Decoders of texts find the same p(y | signal),
    one token a step. The loss reads the lengths of each batch on the host, so that steps on CUDA
    are not captured as graphs.

    Args:
        tokenizer: its first token is the blank, the second one begins and ends each text.
        decode: factory of the decoder, of texts or of CTC's frames.
        vocab_size: number of tokens of the tokenizer; 0 for characters.
        subwords: how the tokens are learned: by byte-pair encoding, or as a unigram model.
        ctc_weight: w, from 0 to 1.
    """

    decoder_kind: ClassVar[str] = "transducer"

    def __init__(
        self,
        tokenizer: Tokenizer,
        decode: Callable[..., Decoder] | None = None,
        *,
        vocab_size: int = 96,
        subwords: Subwords = "bpe",
        ctc_weight: float = 0.3,
    ):
        super().__init__(tokenizer, decode, vocab_size, subwords, ctc_weight)

    def text_loss(
        self, text_scores: Float[Tensor, "b t u v"], lengths: Int[Tensor, " b"], batch: Batch
    ) -> Float[Tensor, ""]:
        # torchaudio requires the longest rows to have no padding
        n_frames = int(lengths.max())
        n_tokens = int(batch.target_lengths.max())
        # imported late, since no other task needs it
        total = import_torchaudio("functional").rnnt_loss(
            text_scores[:, :n_frames, : n_tokens + 1].float().contiguous(),
            batch.targets[:, :n_tokens].int().contiguous(),
            lengths.int(),
            batch.target_lengths.int(),
            blank=BLANK_ID,
            reduction="sum",
        )
        return total / batch.target_lengths.sum().clamp(min=1)
