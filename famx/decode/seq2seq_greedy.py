"""Greedy decoding with a decoder of texts: the most probable token after those before it."""

import torch
from torch import Tensor

from famx.decode.base import TextDecoding
from famx.nn.encoding import BLANK_ID, END_ID, EncoderDecoder, Encoding
from famx.nn.state import DecodeState
from famx.registry import register


@register
class Seq2SeqGreedy(TextDecoding):
    """y_u = argmax_v p(v | y_<u, signal), one position a step, until the end of the text."""

    @torch.inference_mode()
    def decode_encoding(self, model: EncoderDecoder, encoding: Encoding) -> list[str]:
        state = DecodeState()
        token = torch.full_like(encoding.lengths, END_ID)
        has_ended = torch.zeros_like(token, dtype=torch.bool)
        columns: list[Tensor] = []
        for size in range(int(encoding.limits.max())):
            has_ended = has_ended | (encoding.limits <= size)
            scores = model.predict(token[:, None], encoding, state)[:, -1].clone()
            scores[:, BLANK_ID] = -torch.inf
            token = scores.argmax(-1).masked_fill(has_ended, END_ID)
            has_ended = token == END_ID
            if bool(has_ended.all()):
                break
            columns.append(token)
        rows = torch.stack(columns, 1).tolist() if columns else [[]] * len(token)
        return [self.tokenizer.decode(row) for row in rows]
