"""Best-path decoding of CTC: the most probable token of each frame (Graves et al. 2006)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from famx.decode.base import FrameDecoder
from famx.nn.encoding import BLANK_ID
from famx.nn.masks import length_mask
from famx.registry import register


@register
class CTCGreedy(FrameDecoder):
    """text = collapse(argmax_v scores), where `collapse` merges repeats, then drops blanks."""

    def decode_tokens(
        self, scores: Float[Tensor, "b t v"], lengths: Int[Tensor, " b"]
    ) -> list[list[int]]:
        # the most probable token of each frame, blank in padding
        best = scores.argmax(-1)
        padding = ~length_mask(lengths, best.shape[1])
        best = best.masked_fill(padding, BLANK_ID)
        # a token that equals that of the previous frame is the same emission
        is_new = torch.ones_like(best, dtype=torch.bool)
        is_new[:, 1:] = best[:, 1:] != best[:, :-1]
        rows = best.masked_fill(~is_new, BLANK_ID).tolist()
        return [[token for token in row if token != BLANK_ID] for row in rows]
