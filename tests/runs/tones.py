"""A corpus in which each letter is a tone, and runs that are trained on it."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from hydra import compose, initialize_config_dir
from torch import Tensor

from famx.config.schema import CONF, register_schemas, to_plain
from famx.config.versions import VERSION_BASE
from famx.training import checkpoint
from famx.training.loader_config import LoaderConfig
from famx.training.trainer import Trainer
from famx.training.trainer_config import TrainerConfig

register_schemas(trainer=TrainerConfig, loader=LoaderConfig)

# frequency of each letter, in Hz
TONES = {"a": 400, "b": 900, "c": 1700}
SPLIT_SIZES = {"train": 24, "dev": 6, "test": 6}
# a model and a training so small that a run takes about a second
TINY = (
    "model.d_model=16",
    "model.n_heads=2",
    "model.n_layers=1",
    "frontend=log_mel",
    "frontend.channels=4",
    "layer.dropout=0.1",
    "task.vocab_size=0",
    "loader.batch_seconds=4",
    "loader.buckets=2",
    "trainer.max_steps=7",
    "trainer.log_every=2",
    "trainer.eval_every=3",
    "trainer.device=cpu",
    "pictures=off",
)


def recording_of(text: str, rate: int = 16_000) -> np.ndarray:
    """Returns 0.15 s of its tone for each letter, each followed by 0.1 s of silence."""
    time = np.arange(int(0.15 * rate)) / rate
    silence = np.zeros(int(0.1 * rate))
    pieces = []
    for letter in text:
        pieces += [0.3 * np.sin(2 * np.pi * TONES[letter] * time), silence]
    return np.concatenate(pieces).astype("float32")


def write_tones(folder: Path) -> None:
    """Writes recordings of random letters, and the manifest of each split."""
    rng = np.random.default_rng(0)
    for split, size in SPLIT_SIZES.items():
        rows = []
        for i in range(size):
            text = "".join(rng.choice(list(TONES), rng.integers(2, 6)))
            soundfile.write(folder / f"{split}{i}.wav", recording_of(text), 16_000)
            rows.append(f"{split}{i}.wav\t{text}\tsomeone\n")
        (folder / f"{split}.tsv").write_text("".join(rows))


def tones_words(corpus: Path, *words: str) -> list[str]:
    """Returns the command line of a tiny run on the corpus; words that follow override it."""
    return ["data=manifest", f"data.root={corpus}", *TINY, *words]


def tones_config(corpus: Path, *words: str) -> dict[str, Any]:
    """Returns the composed config of a tiny run on the corpus."""
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        return to_plain(compose("train", tones_words(corpus, *words)))


def reported_values(folder: Path, tag: str) -> dict[int, float]:
    """Returns the values of a metric that a run has reported, by step."""
    values = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        report = json.loads(line)
        if tag in report:
            values[report["step"]] = report[tag]
    return values


def saved_weights(folder: Path) -> dict[str, Tensor]:
    """Returns the weights in the last checkpoint of a run."""
    return checkpoint.load(folder / "checkpoints")["model"]


@contextmanager
def stopped_at(step: int, number: int) -> Iterator[None]:
    """Sends this process a real signal inside the given training step."""
    train_step = Trainer.train_step

    def train_step_with_signal(self, batches):
        if self.step + 1 == step:
            os.kill(os.getpid(), number)
        train_step(self, batches)

    Trainer.train_step = train_step_with_signal
    try:
        yield
    finally:
        Trainer.train_step = train_step
