"""What every task shares: decoding a split, and counting errors the way the field does."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jiwer
import numpy as np
import torch
from rich.table import Table
from torch import nn

from famx import disk


class Errors(NamedTuple):
    """Edits between references and hypotheses, over all utterances, and the interval of their rate.

    `rate` is (substitutions + deletions + insertions) / `units`; `low` and `high` bound it with 95 % confidence
    (bootstrap over utterances, Bisani & Ney 2004).
    """

    rate: float
    substitutions: int
    deletions: int
    insertions: int
    units: int
    low: float
    high: float


def edits(references: Sequence[str], hypotheses: Sequence[str], unit: str) -> tuple[np.ndarray, np.ndarray]:
    """Substitutions, deletions and insertions of each utterance, and the units of its reference.

    Args:
        unit: `word` or `char`.
    """
    process = {"word": jiwer.process_words, "char": jiwer.process_characters}[unit]
    each = [process(reference, hypothesis) for reference, hypothesis in zip(references, hypotheses, strict=True)]
    counts = np.array([[e.substitutions, e.deletions, e.insertions] for e in each])
    return counts, np.array([e.hits + e.substitutions + e.deletions for e in each])


def errors(references: Sequence[str], hypotheses: Sequence[str], unit: str, resamples: int = 1000) -> Errors:
    """Counts the edits over words or characters, `unit` is one of `word` and `char`."""
    counts, units = edits(references, hypotheses, unit)
    drawn = np.random.default_rng(0).integers(len(units), size=(resamples, len(units)))
    rates = counts.sum(1)[drawn].sum(1) / np.maximum(1, units[drawn].sum(1))
    low, high = np.quantile(rates, [0.025, 0.975])
    substitutions, deletions, insertions = (int(n) for n in counts.sum(0))
    rate = float(counts.sum() / max(1, units.sum()))
    return Errors(rate, substitutions, deletions, insertions, int(units.sum()), float(low), float(high))


class Evaluation(NamedTuple):
    """What a model makes of a split: mean loss, error rates by name, and every utterance.

    Args:
        audio: seconds of it; tokens of a text.
        seconds: that the evaluation took.
    """

    loss: float
    scores: dict[str, Any]
    ids: list[str]
    references: list[str]
    hypotheses: list[str]
    audio: float
    seconds: float

    @property
    def metrics(self) -> dict[str, float]:
        return {"loss": self.loss} | {name: errors.rate for name, errors in self.scores.items()}

    @property
    def real_time_factor(self) -> float:
        return self.seconds / max(1e-9, self.audio)

    def samples(self, n: int = 8) -> list[tuple[str, ...]]:
        """References and hypotheses, `n` of them from all over the split."""
        step = max(1, len(self.references) // n)
        return list(zip(self.references[::step], self.hypotheses[::step], strict=True))[:n]

    def write(self, folder: Path, split: str, normaliser: str) -> None:
        """Leaves `scores.<split>.json` in a run's folder, and its `hypotheses.<split>.tsv` (id, ref, hyp), if any."""
        rows = [
            "id\tref\thyp",
            *("\t".join(row) for row in zip(self.ids, self.references, self.hypotheses, strict=True)),
        ]
        if self.ids:
            disk.write(folder / f"hypotheses.{split}.tsv", "\n".join(rows) + "\n")
        scores = {name: errors._asdict() for name, errors in self.scores.items()}
        scores |= {"loss": self.loss, "normaliser": normaliser}
        if self.scores:
            scores |= {
                "utterances": len(self.ids),
                "audio_seconds": self.audio,
                "real_time_factor": self.real_time_factor,
            }
        else:
            scores |= {"tokens": round(self.audio)}
        disk.write(folder / f"scores.{split}.json", json.dumps(scores, indent=1) + "\n")

    def table(self, split: str) -> Table:
        """The scores of a split, to be printed."""
        if not self.scores:
            table = Table("loss", "perplexity", title=split, title_justify="left")
            table.add_row(f"{self.loss:.3f}", f"{math.exp(min(self.loss, 99.0)):.3f}")
            return table
        title = f"{split}: real-time factor {self.real_time_factor:.4f}, loss {self.loss:.3f}"
        table = Table(title=title, title_justify="left")
        for column in ("", "rate", "95 % interval", "sub", "del", "ins", "of"):
            table.add_column(column, justify="right", no_wrap=True)
        for name, e in self.scores.items():
            interval = f"{100 * e.low:.2f} - {100 * e.high:.2f} %"
            counts = (e.substitutions, e.deletions, e.insertions, e.units)
            table.add_row(name.upper(), f"{100 * e.rate:.2f} %", interval, *(f"{n:,}" for n in counts))
        return table


def evaluate(model: nn.Module, task: Any, batches: Any, device: torch.device) -> Evaluation:
    """Losses and hypotheses of every batch; error rates come from the hypotheses."""
    model.eval()
    started, total, count, audio = time.perf_counter(), 0.0, 0, 0.0
    ids: list[str] = []
    references: list[str] = []
    hypotheses: list[str] = []
    for batch in batches:
        moved = batch.to(device)
        with torch.inference_mode():
            loss, found = task.judge(model, moved)
        total = total + loss.double().cpu() * task.count(batch)
        count, audio = count + task.count(batch), audio + batch.seconds
        if task.metric != "loss":
            ids, references, hypotheses = ids + batch.ids, references + batch.texts, hypotheses + found
    scores = task.score(references, hypotheses) if references else {}
    spent = time.perf_counter() - started
    return Evaluation(float(total) / max(1, count), scores, ids, references, hypotheses, audio, spent)
