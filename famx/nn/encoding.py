"""The frames of an encoder, and the interface of a model that decodes them to texts."""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from famx.nn.masks import length_mask
from famx.nn.state import DecodeState
from famx.notation import Modality

BLANK_ID = 0  # the blank of CTC and of transducers, which no text contains
END_ID = 1  # begins and ends each text of a decoder


def text_limits(lengths: Int[Tensor, " b"], modality: Modality) -> Int[Tensor, " b"]:
    """Returns the most tokens of a text that is decoded from so many frames.

    Speech has at most one token a frame. A text of n tokens has translations of at most 3 n + 50
    tokens: the factor is Marian's, the constant that of Vaswani et al. (2017, arXiv:1706.03762).
    """
    return 3 * lengths + 50 if modality is Modality.TEXT else lengths


class Encoding(NamedTuple):
    """A batch of encoded signals.

    Args:
        frames: the memory of the decoder.
        lengths: frames of each row without padding.
        scores: scores of each frame, with a blank (CTC); the frames themselves in a model that
            scores none.
        limits: the most tokens that the text of each row may have.
    """

    frames: Float[Tensor, "b s d"]
    lengths: Int[Tensor, " b"]
    scores: Float[Tensor, "b s v"]
    limits: Int[Tensor, " b"]

    @property
    def mask(self) -> Bool[Tensor, "b 1 1 s"]:
        """True for the frames that are not padding."""
        return length_mask(self.lengths, self.frames.shape[1])[:, None, None]

    def repeat(self, times: int) -> "Encoding":
        """Returns the encoding with each row repeated, as `torch.repeat_interleave` does."""
        return Encoding(*(tensor.repeat_interleave(times, 0) for tensor in self))


@runtime_checkable
class EncoderDecoder(Protocol):
    """A model that encodes signals, and predicts each token of a text from its earlier tokens."""

    def encode(
        self,
        inputs: Shaped[Tensor, "b n *pixels"],
        lengths: Int[Tensor, " b"] | None = None,
        spans: Float[Tensor, "b m 4"] | None = None,
    ) -> Encoding:
        """Encodes signals; the arguments are those of `famx.model.Model.forward`."""
        ...

    def predict(
        self,
        text: Int[Tensor, "b u"],
        encoding: Encoding,
        state: DecodeState | None = None,
        text_lengths: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b u v"]:
        """Returns the scores of the token after each one of `text`.

        Args:
            state: decode state of the texts that `text` continues.
            text_lengths: tokens of each row without padding; None if no row is padded.
        """
        ...

    def text_scores(
        self,
        text: Int[Tensor, "b u"],
        encoding: Encoding,
        text_lengths: Int[Tensor, " b"] | None = None,
    ) -> Tensor:
        """Returns the scores that the loss of complete texts needs.

        They are those of `predict`, (b, u, v); those of a transducer are of all pairs of a frame
        and a token, (b, t, u, v).
        """
        ...
