"""Tasks: the interface of a loss, its evaluation, and the scores of a model."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from tokenizers import Tokenizer
from torch import Tensor, nn

from famx.nn.batch import Batch
from famx.notation import Modality


@dataclass(frozen=True)
class Score:
    """A score of a split, lower is better, with its 95 % interval.

    Args:
        rate: the score; a fraction, which is shown in percent, unless `is_fraction` is False.
        low, high: bounds of the interval, NaN where they are not known.
    """

    rate: float
    low: float
    high: float

    is_fraction: ClassVar[bool] = True

    @property
    def counts(self) -> dict[str, int]:
        """The counts that a table of scores shows, by their headings."""
        return {}

    def summary(self) -> dict[str, float | bool | None]:
        """Returns the score as plain values, for `scores.<split>.json`."""
        values = asdict(self)
        # the interval comes last, after the counts of a subclass
        bounds: dict[str, float | bool | None] = {}
        for name in ("low", "high"):
            bound = values.pop(name)
            # JSON has no NaN
            bounds[name] = None if math.isnan(bound) else bound
        if not self.is_fraction:
            bounds["is_fraction"] = False
        return values | bounds


@runtime_checkable
class Decoder(Protocol):
    """A decoder of the room `decode`; returns the texts that a model recognises or generates."""

    def __call__(self, model: nn.Module, batch: Batch) -> list[str]: ...


class Task(ABC):
    """Defines the data, the loss, and the scores of a model's outputs.

    Args:
        tokenizer: token ids <-> text.
        decoder: turns the outputs of a model into texts. A task that a config builds takes
            `decode` instead, a factory that is called with the tokenizer.

    Attributes:
        modality: modality of its data and frontend.
        causal: whether its model must not see later positions.
        output: kind of scores that its model returns, which a decoder must match: "frames" with a
            blank (CTC), or "tokens", each predicted from the tokens before it.
        selection_metric: metric on dev by which checkpoints are selected, "loss" or a name that
            `score` returns; lower is better.
        default_parts: room -> part where the config says `default`.
        special_tokens: first tokens of the vocabulary.
    """

    modality: ClassVar[Modality]
    causal: ClassVar[bool]
    output: ClassVar[str]
    selection_metric: ClassVar[str]
    default_parts: ClassVar[Mapping[str, str]]
    special_tokens: ClassVar[tuple[str, ...]] = ()

    def __init__(self, tokenizer: Tokenizer, decoder: Decoder):
        self.tokenizer = tokenizer
        self.decoder = decoder

    @abstractmethod
    def count(self, batch: Batch) -> int:
        """Counts the units that the loss is a mean over."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Computes the mean loss of a batch.

        On CUDA it does not read a tensor on the host, so that a CUDA graph can capture it: a number
        that differs from batch to batch, such as a count, stays on the device.
        """

    @abstractmethod
    def evaluate_batch(self, model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], list[str]]:
        """Computes the loss of a batch and its hypotheses; none if the loss is the only score."""

    def decode(self, model: nn.Module, batch: Batch) -> list[str]:
        """Decodes a batch to one text per row."""
        return self.decoder(model, batch)

    def score(self, references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, Score]:
        """Returns the scores of hypotheses by name; empty if the loss is the only score."""
        return {}

    def reject(self, n_frames: int, text: str) -> str | None:
        """Returns why a text cannot be learned from this number of frames, None if it can."""
        return None
