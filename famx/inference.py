"""A trained run, loaded to be used: scored on a split, or set to transcribe recordings of any length."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from famx.data._audio import read_audio
from famx.experiment.build import build_dataset, build_loader
from famx.experiment.run import score
from famx.model import build_model
from famx.nn.batch import Batch
from famx.notation import SAMPLE_RATE as RATE
from famx.notation import UserError
from famx.registry import build
from famx.training.checkpoint import load_weights
from famx.training.evaluate import Evaluation
from famx.training.run_dir import checkpoint_dir, load_config, load_tokenizer

LONGEST = (
    20  # seconds that are recognised at once; longer recordings are cut where they are quietest
)
SEARCHED = 5  # seconds before that in which the quietest place is looked for


class Recognizer:
    """
    Args:
        run: a run's folder.
        checkpoint: `best` on dev, or `last`.

    Raises:
        UserError: there is no such run, or its checkpoint is of another model.
    """

    def __init__(self, run: str | Path, checkpoint: str = "best"):
        self.folder, self.checkpoint = Path(run), checkpoint
        saved = checkpoint.load(checkpoint_dir(self.folder), checkpoint)
        self.config = load_config(self.folder)
        self.tokenizer = load_tokenizer(self.folder)
        self.task = build("task", self.config["task"], tokenizer=self.tokenizer)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = build_model(self.config, self.tokenizer.get_vocab_size())
        load_weights(self.model, saved, self.folder)
        self.model.to(self.device).eval()

    def evaluate(self, split: str = "test") -> Evaluation:
        """Decodes a split of the run's own data; leaves hypotheses and scores in its folder, see `title`."""
        loader, title = (
            build_loader(self.config, build_dataset(self.config, split), self.tokenizer),
            self.title(split),
        )
        return score({title: loader}, self.model, self.task, self.device, self.folder)[title]

    def title(self, split: str) -> str:
        """What its files are called: the split, and of the newest checkpoint that it is of that."""
        return split if self.checkpoint == "best" else f"{split}.{self.checkpoint}"

    def transcribe(self, recordings: str | Path | Iterable[str | Path]) -> list[str]:
        """The words of audio files (or of one) of any length, rate, and number of channels.

        Raises:
            UserError: a file is missing or holds no audio, or the run is not one of speech.
        """
        if self.task.causal:
            raise UserError(f"{self.folder} is a model of text, it cannot transcribe audio")
        recordings = [recordings] if isinstance(recordings, str | Path) else recordings
        return [
            " ".join(filter(None, map(self._words, _pieces(read_audio(path)))))
            for path in recordings
        ]

    def _words(self, signal: Float[Tensor, " n"]) -> str:
        lengths = torch.tensor([len(signal)])
        nothing = torch.zeros(1, 0, dtype=torch.long)
        batch: Any = Batch(
            [""], [""], signal[None], lengths, nothing, lengths * 0, None, len(signal) / RATE, 0.0
        )
        return self.task.decode(self.model, batch.to(self.device))[0]


def _pieces(signal: Float[Tensor, " n"]) -> Iterator[Float[Tensor, " n"]]:
    """The recording in pieces of at most `LONGEST` seconds, cut in the quietest fifth of a second."""
    width = RATE // 5
    while len(signal) > LONGEST * RATE:
        tail = signal[(LONGEST - SEARCHED) * RATE : LONGEST * RATE]
        quietest = tail.unfold(0, width, width // 4).square().sum(-1).argmin()
        cut = (LONGEST - SEARCHED) * RATE + int(quietest) * (width // 4) + width // 2
        yield signal[:cut]
        signal = signal[cut:]
    yield signal
