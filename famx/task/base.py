"""Tasks: the interface of a loss, its evaluation, and the scores of a model."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from famx import registry
from famx.nn.batch import Batch
from famx.nn.encoding import EncoderDecoder, Encoding
from famx.notation import Modality, Subwords, UserError


@dataclass(frozen=True)
class Score:
    """A score of a split with its 95 % interval.

    Args:
        rate: the score; a fraction, which is shown in percent, unless `is_fraction` is False.
        low, high: bounds of the interval, NaN where they are not known.

    Attributes:
        higher_is_better: whether a higher rate is better; as errors are counted, a lower one is.
    """

    rate: float
    low: float
    high: float

    is_fraction: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = False

    @property
    def counts(self) -> dict[str, int]:
        """The counts that a table of scores shows, by their headings."""
        return {}

    def summary(self) -> dict[str, float | bool | str | None]:
        """Returns the score as plain values, for `scores.<split>.json`."""
        values = asdict(self)
        # the interval comes last, after the counts of a subclass
        bounds: dict[str, float | bool | str | None] = {}
        for name in ("low", "high"):
            bound = values.pop(name)
            # JSON has no NaN
            bounds[name] = None if math.isnan(bound) else bound
        if not self.is_fraction:
            bounds["is_fraction"] = False
        if self.higher_is_better:
            bounds["higher_is_better"] = True
        return values | bounds


@runtime_checkable
class Decoder(Protocol):
    """A decoder of the room `decode`; returns the texts that a model recognises or generates."""

    def __call__(self, model: nn.Module, batch: Batch) -> list[str]: ...


@runtime_checkable
class ScoresDecoder(Decoder, Protocol):
    """A decoder that can use the scores of a pass that has already been made."""

    def decode_scores(self, scores: Tensor, lengths: Tensor) -> list[str]: ...


@runtime_checkable
class EncodingDecoder(Decoder, Protocol):
    """A decoder that can use an encoding that has already been computed."""

    def decode_encoding(self, model: EncoderDecoder, encoding: Encoding) -> list[str]: ...


class Confusion(NamedTuple):
    """How often a hypothesis has a word or label in the place of another one.

    An insertion has an empty `reference`, a deletion an empty `hypothesis`.
    """

    reference: str
    hypothesis: str
    times: int


ErrorCounts = dict[str, tuple[np.ndarray, np.ndarray]]
"""Errors and units of each sequence, by the name of the score."""


class Matrix(NamedTuple):
    """A matrix to be drawn.

    Args:
        values: shares, from 0 to 1; NaN where they are not defined.
        rows: names of the rows.
        columns: what the columns are.
        column_names: names of the columns; empty for numbers.
        row_title: what the rows are.
    """

    values: Float[Tensor, "rows columns"]
    rows: tuple[str, ...]
    columns: str
    column_names: tuple[str, ...] = ()
    row_title: str = ""


@runtime_checkable
class DrawsScores(Protocol):
    """A task that shows more of an evaluation than its scores: a named picture."""

    def picture(
        self, references: Sequence[str], hypotheses: Sequence[str]
    ) -> tuple[str, Matrix]: ...


@runtime_checkable
class Corpus(Protocol):
    """Training data as a task reads it, to build the tokenizer of its targets."""

    texts: list[str]

    def build_tokenizer(
        self,
        vocab_size: int = 0,
        special_tokens: Sequence[str] = (),
        subwords: Subwords = "bpe",
    ) -> Tokenizer: ...


class Task(ABC):
    """Defines the data, the loss, and the scores of a model's outputs.

    Args:
        tokenizer: token ids <-> text.
        decoder: turns the outputs of a model into texts. A task that a config builds takes
            `decode` instead, a factory that is called with the tokenizer.

    Attributes:
        modality: modality of its data and frontend; None if both may have any, the same one.
        causal: whether its model must not see later positions.
        output: kind of scores that its model returns, which a decoder must match: "frames" with a
            blank (CTC), "tokens", each predicted from the tokens before it, "labels", one for each
            sequence, or "text", whose tokens a decoder predicts.
        other_outputs: further kinds of scores that its model returns.
        decoder_kind: "attention" or "transducer" if its model has a decoder of texts, see
            `famx.nn.encoding`; None if it has none.
        selection_metric: metric on dev by which checkpoints are selected, "loss" or a name that
            `score` returns.
        higher_is_better: names of the scores of which higher is better; of others lower is.
        default_parts: room -> part where the config says `default`.
        default_model: file of conf/model that the task chooses, unless a command or an experiment
            chooses another.
        special_tokens: first tokens of the vocabulary.
        predicts_inputs: whether its targets are the inputs themselves, and not their texts.
    """

    modality: ClassVar[Modality | None]
    causal: ClassVar[bool]
    output: ClassVar[str]
    selection_metric: ClassVar[str]
    default_parts: ClassVar[Mapping[str, str]]
    default_model: ClassVar[str] = "transformer"
    special_tokens: ClassVar[tuple[str, ...]] = ()
    other_outputs: ClassVar[tuple[str, ...]] = ()
    decoder_kind: ClassVar[str | None] = None
    predicts_inputs: ClassVar[bool] = False
    higher_is_better: ClassVar[tuple[str, ...]] = ()

    def __init__(self, tokenizer: Tokenizer, decoder: Decoder):
        self.tokenizer = tokenizer
        self.decoder = decoder

    @property
    def trains_frames(self) -> bool:
        """Whether its loss trains the scores of the frames."""
        return self.output in ("frames", "labels")

    @classmethod
    def default_frontend(cls, modality: Modality) -> str:
        """Returns the part that `frontend=default` means for data of this modality."""
        return cls.default_parts["frontend"]

    @classmethod
    def build_tokenizer(
        cls, corpus: Corpus, vocab_size: int = 0, subwords: Subwords = "bpe"
    ) -> Tokenizer:
        """Builds the tokenizer of the targets from the training data.

        Raises:
            UserError: there is nothing to learn in these texts.
        """
        if subwords == "bpe":  # data sets of users may have no other kind
            return corpus.build_tokenizer(vocab_size, cls.special_tokens)
        return corpus.build_tokenizer(vocab_size, cls.special_tokens, subwords)

    @classmethod
    def cost(cls, value: float) -> float:
        """Returns a value of the selection metric as a number of which lower is better.

        It is the value or its negative, so that the cost of a cost is the value.
        """
        return -value if cls.selection_metric in cls.higher_is_better else value

    @property
    def throughput_unit(self) -> str:
        """The data that reports count: "audio" (seconds), "tokens", "rows" or "examples"."""
        if self.modality is None:
            return "examples"
        return "audio" if self.modality is Modality.SPEECH else f"{self.modality.unit}s"

    def compares_views(self, regularizes: bool) -> bool:
        """Whether training batches need the spans of a second view, `Batch.other_spans`.

        Args:
            regularizes: whether the defaults of a small corpus apply.
        """
        return False

    def throughput(self, batch: Batch) -> float:
        """Returns the amount of data of a batch, in `throughput_unit`."""
        return float(len(batch)) if self.modality is None else batch.amount

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

    def error_counts(self, references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
        """Returns errors and units of each sequence, for scores that are their ratio."""
        return {}

    def confusions(self, references: Sequence[str], hypotheses: Sequence[str]) -> list[Confusion]:
        """Counts what was taken for what, the most frequent first."""
        return []

    def differences(
        self, ids: Sequence[str], references: Sequence[str], hypotheses: Sequence[str]
    ) -> str:
        """Returns the aligned texts of the sequences with errors; empty if there is nothing."""
        return ""

    def count_characters(self, batch: Batch) -> int:
        """Counts the characters that the units of a batch are, 0 where this has no meaning."""
        return 0

    def reject(self, n_frames: int, text: str) -> str | None:
        """Returns why a text cannot be learned from this number of frames, None if it can."""
        return None


class OnePassTask(Task):
    """A task whose loss and hypotheses both come from the scores of one pass through the model.

    Args:
        tokenizer: tokenizer of the targets.
        decode: factory of the decoder; None for that of `default_parts`.

    Raises:
        UserError: the decoder cannot use the scores of a pass.
    """

    decoder: ScoresDecoder

    def __init__(self, tokenizer: Tokenizer, decode: Callable[..., ScoresDecoder] | None):
        if decode is None:
            choice = {"name": self.default_parts["decode"]}
            decoder = registry.build("decode", choice, tokenizer=tokenizer)
        else:
            decoder = decode(tokenizer=tokenizer)
        if not isinstance(decoder, ScoresDecoder):
            # a part has the name of its file
            task = type(self).__module__.rpartition(".")[2]
            name = type(decoder).__name__
            raise UserError(f"task={task} needs a decoder with decode_scores, but {name} has none")
        super().__init__(tokenizer, decoder)

    @abstractmethod
    def loss_of_scores(
        self, scores: Float[Tensor, "b t v"], lengths: Int[Tensor, " b"], batch: Batch
    ) -> Float[Tensor, ""]:
        """Computes the mean loss from the scores of a pass, and the lengths of its frames."""

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        scores, lengths = model(batch.inputs, batch.lengths, batch.spans)
        return self.loss_of_scores(scores, lengths, batch)

    # evaluation blanks nothing, since only training batches have spans
    def evaluate_batch(self, model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], list[str]]:
        scores, lengths = model(batch.inputs, batch.lengths, batch.spans)
        loss = self.loss_of_scores(scores, lengths, batch)
        return loss, self.decoder.decode_scores(scores, lengths)
