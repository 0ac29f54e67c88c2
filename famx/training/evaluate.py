"""Evaluation of a model on a split."""

import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import nn

from famx import files


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
            *(
                "\t".join(row)
                for row in zip(self.ids, self.references, self.hypotheses, strict=True)
            ),
        ]
        if self.ids:
            files.write_atomic(folder / f"hypotheses.{split}.tsv", "\n".join(rows) + "\n")
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
        files.write_atomic(folder / f"scores.{split}.json", json.dumps(scores, indent=1) + "\n")

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
            table.add_row(
                name.upper(), f"{100 * e.rate:.2f} %", interval, *(f"{n:,}" for n in counts)
            )
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
            ids, references, hypotheses = (
                ids + batch.ids,
                references + batch.texts,
                hypotheses + found,
            )
    scores = task.score(references, hypotheses) if references else {}
    spent = time.perf_counter() - started
    return Evaluation(
        float(total) / max(1, count), scores, ids, references, hypotheses, audio, spent
    )
