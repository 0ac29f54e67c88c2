"""A decoder of texts that attends to the frames of an encoder (Vaswani et al. 2017)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from famx.nn.encoding import Encoding
from famx.nn.hooks import connect_layers, drop_self_attention
from famx.nn.masks import length_mask
from famx.nn.state import DecodeState


class TextDecoder(nn.Module):
    """Scores the next token of a text, from its earlier tokens and a memory.

    Layers alternate: one attends to the tokens so far, the next one to the memory.

    Args:
        embedding: frontend of token ids, which maps them to vectors of `d_model` channels.
        text_layers, memory_layers: causal layers, equally many of both.
        norm: applied to the vectors of the last layer, before the scores.
        d_model: channels of a vector and of the memory.
        vocab_size: number of tokens.
    """

    def __init__(
        self,
        embedding: nn.Module,
        text_layers: list[nn.Module],
        memory_layers: list[nn.Module],
        norm: nn.Module,
        d_model: int,
        vocab_size: int,
    ):
        super().__init__()
        self.embedding = embedding
        self.text_layers = nn.ModuleList(text_layers)
        self.memory_layers = nn.ModuleList(memory_layers)
        self.norm = norm
        self.score = nn.Linear(d_model, vocab_size)
        drop_self_attention(self.memory_layers)
        # both kinds of layers have messages of their own
        connected = [connect_layers(self.text_layers), connect_layers(self.memory_layers)]
        self.connects_layers = any(connected)

    def forward(
        self,
        text: Int[Tensor, "b u"],
        encoding: Encoding,
        state: DecodeState | None = None,
        lengths: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b u v"]:
        """See `famx.nn.encoding.EncoderDecoder.predict`."""
        size = text.shape[1]
        mask = None if lengths is None else length_mask(lengths, size)[:, None, None]
        if lengths is None:
            lengths = torch.full((len(text),), size, device=text.device)
        x, _ = self.embedding(text, lengths)
        memory_mask = encoding.mask
        if state is None and self.connects_layers:
            state = DecodeState(incremental=False)
        for text_layer, memory_layer in zip(self.text_layers, self.memory_layers, strict=True):
            x = text_layer(x, mask=mask, state=state)
            x = memory_layer(x, encoding.frames, memory_mask, state)
        return self.score(self.norm(x))

    def text_scores(
        self,
        text: Int[Tensor, "b u"],
        encoding: Encoding,
        lengths: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b u v"]:
        """See `famx.nn.encoding.EncoderDecoder.text_scores`."""
        scores: Tensor = self(text, encoding, lengths=lengths)
        return scores
