"""Pictures of a run: an utterance and confusions of dev at evaluations, attention at the end."""

import logging
import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import nn

from famx.data._tokenizers import byte_tokenizer
from famx.data.base import Dataset
from famx.monitoring.figures import Axis, Pixels, draw_matrix
from famx.monitoring.hooks import WriteRunLog
from famx.monitoring.sensitivity import Sensitivity, attention_blocks, measure_sensitivity
from famx.monitoring.utterance import predicted_names, recognize_utterance, text_tokens, token_names
from famx.monitoring.utterance_figure import draw_utterance
from famx.nn.batch import Batch
from famx.nn.encoding import EncoderDecoder
from famx.notation import Modality
from famx.task.base import DrawsScores, Task
from famx.training.evaluate import Evaluation
from famx.training.hooks import Hook
from famx.training.loader import Loader
from famx.training.trainer import Trainer

log = logging.getLogger(__name__)

MAX_SECONDS = 10.0  # of the utterance that is drawn
MAX_TOKENS = 64  # of the text that is drawn, its first ones
N_BYTES = 256  # vocabulary of inputs that are bytes

Pictures = dict[str, Pixels]
"""Pictures by tag."""


class DrawPictures(Hook):
    """Draws one example of dev, that of median length, in the whole run the same one.

    `dev/utterance` of speech, and what a task draws of its scores (`dev/confusion`), are drawn at
    each evaluation; `attention/NAME` of each attention block at the end of the run, of the weights
    that are scored. An error ends the pictures and not the run.

    Args:
        loader: reads the examples of dev.
        run_log: receives the pictures.
    """

    def __init__(self, loader: Loader, run_log: WriteRunLog):
        self.loader = loader
        self.run_log = run_log
        self.has_failed = False
        self._batch: Batch | None = None

    def on_evaluation(self, trainer: Trainer, evaluation: Evaluation) -> None:
        self._log(trainer.step, lambda: self._evaluation(trainer, evaluation))

    def finish(self, task: Task, model: nn.Module, step: int) -> None:
        """Draws the attention of a trained model, in evaluation mode."""
        self._log(step, lambda: self._attention(task, model))

    def _log(self, step: int, draw: Callable[[], Pictures]) -> None:
        """Writes pictures, unless drawing has failed."""
        if self.has_failed:
            return
        try:
            pictures = draw()
        except Exception as error:
            # a part of the user may do anything, and hours of training matter more than a picture
            self.has_failed = True
            reason = str(error).partition("\n")[0]
            log.warning("no pictures from step %d on: %s: %s", step, type(error).__name__, reason)
        else:
            self.run_log.log.log_pictures(step, pictures)

    def _example(self, device: torch.device) -> Batch | None:
        """Returns the example as a batch of one, None if it cannot be read."""
        if self._batch is None:
            index = median_example(self.loader.dataset, self.loader.skipped)
            self._batch = self.loader.read_example(index)
        return None if self._batch is None else self._batch.to(device)

    def _evaluation(self, trainer: Trainer, evaluation: Evaluation) -> Pictures:
        task = trainer.task
        pictures = {}
        if isinstance(task, DrawsScores):
            name, matrix = task.picture(evaluation.references, evaluation.hypotheses)
            rows = Axis(matrix.row_title, matrix.rows)
            columns = Axis(matrix.columns, matrix.column_names, float(matrix.values.shape[1]))
            pictures[f"dev/{name}"] = draw_matrix(
                matrix.values, f"{name}, step {trainer.step}", rows, columns, 1.0, "", True
            )
        batch = None
        if self.loader.dataset.modality is Modality.SPEECH:
            batch = self._example(trainer.device)
        if batch is not None:
            utterance = recognize_utterance(task, trainer.evaluated_model, batch)
            pictures["dev/utterance"] = draw_utterance(utterance)
        return pictures

    def _attention(self, task: Task, model: nn.Module) -> Pictures:
        batch = self._example(next(model.parameters()).device)
        if batch is None:
            return {}
        return attention_pictures(task, model, batch, self.loader.dataset.input_vocab_size)


def median_example(dataset: Dataset, skipped: Collection[int] = ()) -> int:
    """Returns the index of the example of median length, of recordings of at most `MAX_SECONDS`.

    One with a text is preferred. Where all recordings are longer, it is the shortest one.
    """
    lengths = dataset.lengths
    indices = [index for index in range(len(dataset)) if index not in skipped]
    indices.sort(key=lambda index: lengths[index])
    limit = MAX_SECONDS if dataset.modality is Modality.SPEECH else math.inf
    short = [index for index in indices if lengths[index] <= limit] or indices[:1]
    preferred = [index for index in short if dataset.texts[index]] or short
    return preferred[(len(preferred) - 1) // 2]


def attention_pictures(
    task: Task, model: nn.Module, batch: Batch, input_vocab_size: int | None = None
) -> Pictures:
    """Draws `attention/NAME` of each attention block; see `famx.monitoring.sensitivity`.

    Args:
        batch: one example. Of a text its first tokens are used, and a decoder of texts predicts
            the reference.
        input_vocab_size: number of token ids of the inputs, where they are not those of the task.
    """
    inputs = batch.inputs
    if batch.modality is Modality.TEXT:
        inputs = inputs[:, :MAX_TOKENS]

    def run() -> None:
        if isinstance(model, EncoderDecoder):
            model.text_scores(text_tokens(batch), model.encode(inputs))
        else:
            model(inputs)

    blocks = attention_blocks(model)
    encoder = Axis("position")
    if batch.modality is Modality.SPEECH:
        encoder = Axis("seconds", size=batch.amount)
    elif batch.modality is Modality.TEXT:
        encoder = Axis("token", input_names(task, inputs[0].tolist(), input_vocab_size))
    pictures = {}
    for name, sensitivity in measure_sensitivity(blocks, run).items():
        part = type(blocks[name]).__module__.rpartition(".")[2]
        title = f"{name.replace('_', ' ')} ({part}), {batch.ids[0]}"
        rows, columns = _axes(name, sensitivity, encoder, task, batch)
        rows = rows._replace(title=f"output: {rows.title}")
        columns = columns._replace(title=f"input: {columns.title}")
        pictures[f"attention/{name}"] = draw_matrix(
            sensitivity.shares, title, rows, columns, legend="‖∂output / ∂input‖, share of its row"
        )
    return pictures


def input_names(task: Task, inputs: Sequence[int], input_vocab_size: int | None) -> tuple[str, ...]:
    """Returns the names of the tokens of a text; none where their vocabulary is not known."""
    if task.predicts_inputs:
        return token_names(task.tokenizer, inputs)
    if input_vocab_size == N_BYTES:
        return token_names(byte_tokenizer(), inputs)
    return ()


def _axes(
    name: str, sensitivity: Sensitivity, encoder: Axis, task: Task, batch: Batch
) -> tuple[Axis, Axis]:
    """Returns the axes of the queries and of the sources of a block."""
    queries = sensitivity.queries.tolist()
    if sensitivity.from_memory:
        predicted = predicted_names(task.tokenizer, batch)
        rows = Axis("token that is predicted", tuple(predicted[query] for query in queries))
        return rows, encoder
    axis = encoder
    if name.startswith("text_"):
        axis = Axis("token", ("begin", *predicted_names(task.tokenizer, batch)[:-1]))
    has_seconds = batch.modality is Modality.SPEECH and not axis.names
    if not has_seconds and len(axis.names) != sensitivity.length:
        # a frontend may have other positions than the inputs
        axis = Axis("position", size=float(sensitivity.length))
    rows = axis._replace(names=tuple(axis.names[query] for query in queries if axis.names))
    return rows, axis
