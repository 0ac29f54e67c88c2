"""The most probable label of a sequence."""

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from famx.decode.base import Decoder
from famx.nn.batch import Batch
from famx.nn.pooling import sequence_mean
from famx.registry import register


@register
class Label(Decoder):
    """label = argmax_v of the scores, averaged over the frames of the sequence."""

    output = "labels"

    def __init__(self, tokenizer: Tokenizer):
        super().__init__(tokenizer)
        vocabulary = tokenizer.get_vocab()
        self.labels = sorted(vocabulary, key=vocabulary.__getitem__)

    def decode_scores(
        self, scores: Float[Tensor, "b t v"], lengths: Int[Tensor, " b"]
    ) -> list[str]:
        """Decodes the scores of a batch; the frames of each row beyond `lengths` are padding."""
        ids = sequence_mean(scores, lengths).argmax(-1).tolist()
        return [self.labels[token] for token in ids]

    @torch.inference_mode()
    def __call__(self, model: nn.Module, batch: Batch) -> list[str]:
        return self.decode_scores(*model(batch.inputs, batch.lengths))
