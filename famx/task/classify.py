"""Classification: one label for a sequence of speech, text or images."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from famx.nn.batch import Batch
from famx.nn.pooling import sequence_logsumexp, sequence_mean
from famx.notation import Modality, Subwords, UserError
from famx.registry import register
from famx.task._labels import confusion_matrix, label_error, macro_f1
from famx.task.base import (
    Confusion,
    Corpus,
    ErrorCounts,
    Matrix,
    OnePassTask,
    Score,
    ScoresDecoder,
)


@register
class Classify(OnePassTask):
    """loss = -log p(label | sequence), the mean over sequences; p = softmax(pool over t of W x_t).

    The mean of the scores of all frames equals the scores of the mean frame. With `logsumexp`,
    p(label) = sum_t exp(s_t,label) / sum_t,label' exp(s_t,label'), s = W x: a few frames with high
    scores decide, such as the words of a sentence by which its label is known. The labels are those
    of the training data, in alphabetical order; a token is a label.

    Args:
        tokenizer: its tokens are the labels.
        decode: factory of the decoder.
        label_smoothing: share of the target that is divided equally among all labels, from 0 to
            below 1 (Szegedy et al. 2016).
        pooling: how the scores of frames become those of the sequence.
    """

    modality: ClassVar[Modality | None] = None
    causal: ClassVar[bool] = False
    output: ClassVar[str] = "labels"
    selection_metric: ClassVar[str] = "error"
    default_parts: ClassVar[dict[str, str]] = {
        "data": "digit_images",
        "frontend": "patches",
        "decode": "label",
    }

    def __init__(
        self,
        tokenizer: Tokenizer,
        decode: Callable[..., ScoresDecoder] | None = None,
        *,
        label_smoothing: float = 0.0,
        pooling: Literal["mean", "logsumexp"] = "mean",
    ):
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must be from 0 to below 1")
        super().__init__(tokenizer, decode)
        self.label_smoothing = label_smoothing
        self._pool = {"mean": sequence_mean, "logsumexp": sequence_logsumexp}[pooling]
        vocabulary = tokenizer.get_vocab()
        self.labels = sorted(vocabulary, key=vocabulary.__getitem__)

    @classmethod
    def default_frontend(cls, modality: Modality) -> str:
        by_modality = {
            Modality.SPEECH: "log_mel",
            Modality.TEXT: "tokens",
            Modality.IMAGE: "patches",
        }
        return by_modality[modality]

    @classmethod
    def build_tokenizer(
        cls, corpus: Corpus, vocab_size: int = 0, subwords: Subwords = "bpe"
    ) -> Tokenizer:
        """Builds a tokenizer with one token for each label of the training data.

        Raises:
            UserError: an example has no label, or all have the same one.
        """
        n_examples = len(corpus.texts)
        without = corpus.texts.count("")
        if without:
            raise UserError(
                f"task=classify needs a label for each example, but {without} of the "
                f"{n_examples} of training have none"
            )
        labels = sorted(set(corpus.texts))
        if len(labels) < 2:
            raise UserError(
                f"task=classify needs at least two labels, but all {n_examples} examples of "
                f"training have {labels[0]!r}"
            )
        return Tokenizer(models.WordLevel({label: i for i, label in enumerate(labels)}))

    def count(self, batch: Batch) -> int:
        """Counts the sequences."""
        return len(batch)

    def score(self, references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, Score]:
        """Computes 1 - accuracy and 1 - macro F1, both as errors, since lower is better."""
        return {
            "error": label_error(references, hypotheses),
            "f1_error": macro_f1(references, hypotheses),
        }

    def error_counts(self, references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
        """Returns 1 for each wrong label, of one."""
        wrong = [a != b for a, b in zip(references, hypotheses, strict=True)]
        return {"error": (np.array(wrong, np.int64), np.ones(len(wrong), np.int64))}

    def confusions(self, references: Sequence[str], hypotheses: Sequence[str]) -> list[Confusion]:
        """Counts the wrong labels by the right ones."""
        pairs = Counter(zip(references, hypotheses, strict=True))
        wrong = [Confusion(*pair, times) for pair, times in pairs.items() if pair[0] != pair[1]]
        return sorted(wrong, key=lambda row: (-row.times, row.reference, row.hypothesis))

    def picture(self, references: Sequence[str], hypotheses: Sequence[str]) -> tuple[str, Matrix]:
        """Returns the confusion matrix, as shares of each reference; NaN for one that is absent."""
        counts = confusion_matrix(references, hypotheses, self.labels)
        shares = torch.from_numpy(counts / counts.sum(1, keepdims=True).clip(min=1)).float()
        shares[counts.sum(1) == 0] = torch.nan
        names = tuple(self.labels)
        return "confusion", Matrix(
            shares, names, "label of the model, % of a row", names, "reference"
        )

    def loss_of_scores(self, scores: Tensor, lengths: Tensor, batch: Batch) -> Float[Tensor, ""]:
        return self._loss(self._pool(scores, lengths), batch)

    def evaluate_batch(self, model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], list[str]]:
        pooled = self._pool(*model(batch.inputs, batch.lengths, batch.spans))
        return self._loss(pooled, batch), self._decode(pooled)

    def decode(self, model: nn.Module, batch: Batch) -> list[str]:
        return self._decode(self._pool(*model(batch.inputs, batch.lengths)))

    def _loss(self, pooled: Float[Tensor, "b v"], batch: Batch) -> Float[Tensor, ""]:
        return cross_entropy(pooled, batch.targets[:, 0], label_smoothing=self.label_smoothing)

    def _decode(self, pooled: Float[Tensor, "b v"]) -> list[str]:
        # as sequences of one frame
        lengths = torch.ones(len(pooled), dtype=torch.long, device=pooled.device)
        return self.decoder.decode_scores(pooled[:, None], lengths)
