"""Language model: predicts each next character or byte from those before it."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from famx.registry import register


@register
class LanguageModel:
    """-log p(next | before), the mean over all positions, in nats. A batch holds one id more than it predicts."""

    causal: ClassVar[bool] = True
    unit: ClassVar[str] = "tokens"
    metric: ClassVar[str] = "loss"
    usual: ClassVar[dict[str, str]] = {"frontend": "tokens", "data": "text"}

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def count(self, batch) -> int:
        """Units that the loss is the mean over: predicted ids."""
        return int(batch.lengths.sum()) - len(batch.ids)

    def loss(self, model, batch) -> Float[Tensor, ""]:
        lengths = batch.lengths - 1 if batch.padding else None
        scores, lengths = model(batch.inputs[:, :-1], lengths)
        targets = batch.inputs[:, 1:]
        real = torch.arange(targets.shape[1], device=targets.device) < lengths[:, None]
        return cross_entropy(
            scores.float().flatten(0, 1), targets.masked_fill(~real, -100).flatten()
        )

    def judge(self, model, batch) -> tuple[Float[Tensor, ""], list[str]]:
        """The loss, and no text, for none is compared."""
        return self.loss(model, batch), []

    @torch.inference_mode()
    def decode(self, model, batch) -> list[str]:
        """The likeliest continuation of the first half of each row, one id at a time."""
        start = batch.inputs.shape[1] // 2
        state: dict = {}
        chunk, written = batch.inputs[:, :start], []
        for _ in range(batch.inputs.shape[1] - start):
            scores, _ = model(chunk, state=state)
            chunk = scores[:, -1:].argmax(-1)
            written.append(chunk)
        return [self.tokenizer.decode(row) for row in torch.cat(written, 1).tolist()]

    def score(self, references: list[str], hypotheses: list[str]) -> dict:
        """Nothing but the loss counts: a continuation that differs from the text is no error."""
        return {}
