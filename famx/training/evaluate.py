"""Evaluation of a model on a split: its loss, its hypotheses and their scores."""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import nn

from famx.nn.batch import Batch
from famx.notation import Modality, UserError
from famx.task.base import Score, Task
from famx.training.device import describe_precision
from famx.training.error_analysis import ErrorAnalysis


@dataclass(frozen=True)
class Evaluation:
    """A model's results on a split.

    Args:
        loss: mean loss over all units of the task.
        scores: scores by name, empty if the loss is the only one.
        ids, references, hypotheses: one per utterance.
        modality: modality of the data.
        amount: amount of data, in seconds of audio, tokens of text or rows of pixels.
        seconds: wall time of the evaluation.
        precision: precision of its arithmetic.
        weights: the weights of the model, in words; empty if they are those of a training.
        units: number of units that the loss is a mean over.
        characters: number of characters of a text that these units are; 0 for other data.
        analysis: what is wrong in the hypotheses; None where that is not needed.
    """

    loss: float
    scores: Mapping[str, Score]
    ids: list[str]
    references: list[str]
    hypotheses: list[str]
    modality: Modality
    amount: float
    seconds: float
    precision: str
    weights: str = ""
    units: int = 0
    characters: int = 0
    analysis: ErrorAnalysis | None = None

    @property
    def perplexity(self) -> float:
        """exp(loss), of a loss of at most 99 nats."""
        return math.exp(min(self.loss, 99.0))

    @property
    def bits_per_character(self) -> float | None:
        """loss · units / (characters · ln 2); None where characters are not counted."""
        if not self.characters:
            return None
        return self.loss * self.units / (self.characters * math.log(2))

    @property
    def metrics(self) -> dict[str, float]:
        """The loss and the rate of each score."""
        return {"loss": self.loss} | {name: score.rate for name, score in self.scores.items()}

    @property
    def real_time_factor(self) -> float:
        """Seconds of computation per second of audio."""
        return self.seconds / max(1e-9, self.amount)

    @property
    def hypotheses_text(self) -> str:
        """Lines of id, reference and hypothesis; empty without hypotheses."""
        rows = zip(self.ids, self.references, self.hypotheses, strict=True)
        lines = ["id\tref\thyp", *("\t".join(row) for row in rows)]
        return "\n".join(lines) + "\n" if self.ids else ""

    @property
    def differences_text(self) -> str:
        """The aligned texts of utterances with errors; empty if there are none."""
        differences = self.analysis.differences if self.analysis else ""
        return f"{differences}\n" if differences else ""

    def scores_text(self, conditions: Mapping[str, object]) -> str:
        """Returns `summary` as JSON."""
        return json.dumps(self.summary(conditions), indent=1) + "\n"

    def samples(self, n: int = 8) -> list[tuple[str, str]]:
        """Returns `n` pairs of reference and hypothesis, spread over the split."""
        step = max(1, len(self.references) // n)
        pairs = zip(self.references[::step], self.hypotheses[::step], strict=True)
        return list(pairs)[:n]

    def summary(self, conditions: Mapping[str, object]) -> dict[str, Any]:
        """Returns the scores and sizes as plain values, for `scores.<split>.json`.

        Args:
            conditions: what else the scores depend on: the normaliser of the references, the
                decoder of the hypotheses, the data.
        """
        summary: dict[str, Any] = {name: score.summary() for name, score in self.scores.items()}
        summary["loss"] = self.loss
        if self.bits_per_character is not None:
            summary["perplexity"] = self.perplexity
            summary["bits_per_character"] = self.bits_per_character
        if self.analysis is not None:
            for name in self.scores:
                if name in self.analysis.intervals:
                    low, high = self.analysis.intervals[name]
                    summary[name] |= {"low_by_speaker": low, "high_by_speaker": high}
            summary |= self.analysis.summary()
        summary |= conditions
        summary["precision"] = self.precision
        summary["weights"] = self.weights
        # sizes, which show how reliable the scores are
        if self.ids:
            summary["utterances"] = len(self.ids)
        if self.modality is Modality.SPEECH:
            summary["audio_seconds"] = self.amount
            summary["real_time_factor"] = self.real_time_factor
        else:
            summary[f"{self.modality.unit}s"] = round(self.amount)
        return summary

    def table(self, split: str) -> Table:
        """Returns the scores as a table for the terminal."""
        if not self.scores:
            return self._loss_table(split)
        # one row per score, with a column for every count that some score has
        title = f"{split}: loss {self.loss:.3f}"
        if self.modality is Modality.SPEECH:
            title += f", real-time factor {self.real_time_factor:.4f}"
        table = Table(title=title, title_justify="left", min_width=len(title))
        headings = dict.fromkeys(key for score in self.scores.values() for key in score.counts)
        for column in ("", "rate", "95 % interval", *headings):
            table.add_column(column, justify="right", no_wrap=True)
        for name, score in self.scores.items():
            scale = 100 if score.is_fraction else 1
            unit = " %" if score.is_fraction else ""
            counts = []
            for key in headings:
                counts.append(f"{score.counts[key]:,}" if key in score.counts else "")
            table.add_row(
                name.upper(),
                f"{scale * score.rate:.2f}{unit}",
                _format_interval(scale * score.low, scale * score.high, unit),
                *counts,
            )
        return table

    def _loss_table(self, split: str) -> Table:
        """Returns the table of a task whose loss is its only score."""
        values = {"loss": self.loss, "perplexity": self.perplexity}
        if self.bits_per_character is not None:
            values["bits per character"] = self.bits_per_character
        table = Table(*values, title=split, title_justify="left")
        table.add_row(*(f"{value:.3f}" for value in values.values()))
        return table


def _format_interval(low: float, high: float, unit: str) -> str:
    if math.isnan(low):
        return "not known"
    return f"{low:.2f} to {high:.2f}{unit}"


def evaluate(
    model: nn.Module,
    task: Task,
    batches: Iterable[Batch],
    device: torch.device,
    weights: str = "",
    normalise: Callable[[str], str] | None = None,
) -> Evaluation:
    """Evaluates a model on batches of a split, without dropout and without gradients.

    Args:
        weights: the weights of the model, in words.
        normalise: normalisation of the hypotheses; None for a model that has learned the one of
            the references.
    """
    model.eval()
    started = time.perf_counter()
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    characters = 0
    amount = 0.0
    modality = task.modality
    ids: list[str] = []
    references: list[str] = []
    hypotheses: list[str] = []
    for batch in batches:
        moved = batch.to(device)
        with torch.inference_mode():
            loss, texts = task.evaluate_batch(model, moved)
        # the mean loss of a batch counts once for each of its units
        total = total + loss.double().cpu() * task.count(batch)
        count += task.count(batch)
        characters += task.count_characters(batch)
        amount += batch.amount
        modality = batch.modality
        if texts:
            ids += batch.ids
            references += batch.texts
            hypotheses += map(normalise, texts) if normalise else texts
    if modality is None:
        raise UserError("the split is empty, so there is nothing to evaluate")
    scores = task.score(references, hypotheses) if references else {}
    return Evaluation(
        loss=float(total) / max(1, count),
        scores=scores,
        ids=ids,
        references=references,
        hypotheses=hypotheses,
        modality=modality,
        amount=amount,
        seconds=time.perf_counter() - started,
        precision=describe_precision(torch.float32, device),
        weights=weights,
        units=count,
        characters=characters,
    )
