"""Greedy continuation of text by a language model: the most probable token after each prefix."""

import torch
from torch import nn

from famx.decode.base import Decoder
from famx.nn.batch import Batch
from famx.nn.state import DecodeState
from famx.registry import register


@register
class LMGreedy(Decoder):
    """x_t = argmax_v p(v | x_<t), for the second half of each row; the first half is the prompt."""

    output = "tokens"

    @torch.inference_mode()
    def __call__(self, model: nn.Module, batch: Batch) -> list[str]:
        seq_len = batch.inputs.shape[1]
        prompt_len = seq_len // 2
        state = DecodeState()
        # the first chunk is the prompt, every later chunk is the token just generated
        chunk = batch.inputs[:, :prompt_len]
        written = []
        for _ in range(seq_len - prompt_len):
            scores, _ = model(chunk, state=state)
            chunk = scores[:, -1:].argmax(-1)
            written.append(chunk)
        rows = torch.cat(written, 1).tolist()
        return [self.tokenizer.decode(row) for row in rows]
