"""Models with a decoder of texts whose scores are free parameters, or certain."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from famx.nn.encoding import END_ID, Encoding
from famx.nn.masks import length_mask
from famx.nn.state import DecodeState
from famx.nn.transducer import NEVER, score_next_tokens


class TextModel(nn.Module):
    """A model with a decoder, whose frames are its inputs.

    Args:
        score_frames: a module that scores the inputs frame by frame.
    """

    def __init__(self, score_frames: Callable[..., tuple[Tensor, Tensor]]):
        super().__init__()
        self.score_frames = score_frames

    def forward(
        self,
        inputs: Tensor,
        lengths: Tensor | None = None,
        spans: Tensor | None = None,
        text: Tensor | None = None,
        text_lengths: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        encoding = self.encode(inputs, lengths, spans)
        if text is None:
            return encoding.scores, encoding.lengths
        return encoding.scores, encoding.lengths, self.text_scores(text, encoding, text_lengths)

    def encode(
        self, inputs: Tensor, lengths: Tensor | None = None, spans: Tensor | None = None
    ) -> Encoding:
        scores, lengths = self.score_frames(inputs, lengths, spans)
        return Encoding(inputs[..., None], lengths, scores, limits=lengths)

    def predict(
        self,
        text: Tensor,
        encoding: Encoding,
        state: DecodeState | None = None,
        text_lengths: Tensor | None = None,
    ) -> Tensor:
        """Returns scores that depend on the position alone."""
        size = text.shape[1]
        start = state.advance(self, size) if state is not None else 0
        scores = self.all_scores(encoding)[:, start : start + size]
        if text_lengths is None:
            return scores
        is_real = length_mask(text_lengths, size)[..., None]
        return torch.where(is_real, scores, self.text_padding(scores))

    def text_scores(
        self, text: Tensor, encoding: Encoding, text_lengths: Tensor | None = None
    ) -> Tensor:
        return self.predict(text, encoding, None, text_lengths)

    def all_scores(self, encoding: Encoding) -> Tensor:
        """Returns the scores of all positions of a text."""
        raise NotImplementedError

    def text_padding(self, scores: Tensor) -> Tensor:
        return torch.zeros_like(scores)


class FreeText(TextModel):
    """A model whose scores are parameters: a row for each row of a batch and each position.

    Args:
        score_frames: a module that scores the inputs frame by frame.
        rows: number of rows of the batch; of row i, the first input is `i * frames`.
        frames: number of frames of a row, which no text exceeds.
        vocab_size: number of tokens.
    """

    def __init__(self, score_frames: nn.Module, rows: int, frames: int, vocab_size: int):
        super().__init__(score_frames)
        self.frames = frames
        self.text_table = nn.Parameter(torch.randn(rows, *self.shape(frames), vocab_size))
        self.padding = nn.Parameter(torch.randn(vocab_size))

    @staticmethod
    def shape(frames: int) -> tuple[int, ...]:
        """Returns the shape of the scores of one row, without the tokens."""
        return (frames + 1,)

    def all_scores(self, encoding: Encoding) -> Tensor:
        return self.text_table[encoding.frames[:, 0, 0].long() // self.frames]

    def text_padding(self, scores: Tensor) -> Tensor:
        return self.padding


class FreeLattice(FreeText):
    """A model whose lattice is parameters: scores for each row, frame and position of a text."""

    @staticmethod
    def shape(frames: int) -> tuple[int, ...]:
        return (frames, frames + 1)

    def predict(
        self,
        text: Tensor,
        encoding: Encoding,
        state: DecodeState | None = None,
        text_lengths: Tensor | None = None,
    ) -> Tensor:
        size = text.shape[1]
        start = state.advance(self, size) if state is not None else 0
        cache = state.cache(self) if state is not None else {}
        lattice = self.lattice(encoding)[:, :, start : start + size]
        return score_next_tokens(lattice, text, encoding.lengths, cache)

    def text_scores(
        self, text: Tensor, encoding: Encoding, text_lengths: Tensor | None = None
    ) -> Tensor:
        lattice = self.lattice(encoding)[:, :, : text.shape[1]]
        if text_lengths is None:
            return lattice
        is_real = length_mask(text_lengths, text.shape[1])[:, None, :, None]
        return torch.where(is_real, lattice, self.padding)

    def lattice(self, encoding: Encoding) -> Tensor:
        """Returns the scores of all frames and positions; the end is never emitted."""
        # a shard may have fewer frames
        scores = self.all_scores(encoding)[:, : encoding.frames.shape[1]]
        is_real = length_mask(encoding.lengths, scores.shape[1])[..., None, None]
        is_end = torch.arange(scores.shape[-1]) == END_ID
        return torch.where(is_real, scores, self.padding).masked_fill(is_end, NEVER)


class CertainText(TextModel):
    """A model that is certain of the text of its inputs: each token twice, then a blank.

    Args:
        score_frames: a module that scores the inputs frame by frame.
        scale: score of the right token; all others are 0.
    """

    def __init__(self, score_frames: nn.Module, vocab_size: int, scale: float):
        super().__init__(score_frames)
        self.vocab_size = vocab_size
        self.scale = scale

    def all_scores(self, encoding: Encoding) -> Tensor:
        ids = encoding.frames[..., 0].long()
        is_padding = ~length_mask(encoding.lengths, ids.shape[1])
        # the first frame of each token, then the end
        tokens = ids.masked_fill(is_padding, END_ID)[:, ::3]
        tokens = nn.functional.pad(tokens, (0, ids.shape[1]), value=END_ID)
        return self.scale * nn.functional.one_hot(tokens, self.vocab_size).float()
