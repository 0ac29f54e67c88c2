"""Loads a trained run, to score a split or to transcribe recordings of any length."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from famx.data._audio import read_audio
from famx.experiment.build import build_experiment
from famx.experiment.data_record import warn_of_training_recordings
from famx.experiment.resolve import check_parts_fit, override_decoding
from famx.experiment.run import score
from famx.nn.batch import Batch
from famx.notation import SAMPLE_RATE, Modality, UserError
from famx.training import checkpoint
from famx.training.checkpoint import load_weights
from famx.training.device import select_device
from famx.training.evaluate import Evaluation
from famx.training.run_dir import RunDir

log = logging.getLogger(__name__)

MAX_SECONDS = 20  # longest piece; a longer recording is cut where it is quietest
SEARCH_SECONDS = 5  # the cut is searched in the last seconds of the longest piece


class Recognizer:
    """A trained run.

    Args:
        run: the run's folder.
        checkpoint_name: `best` on dev, or `last`.
        overrides: settings such as `decode=ctc_greedy` or `trainer.device=cpu`, which replace those
            of the training.
        trust_edits: whether to use a config and a tokenizer that have changed since the training.

    Raises:
        UserError: the run does not exist or has been edited, or its checkpoint belongs to another
            model.
    """

    def __init__(
        self,
        run: str | Path,
        checkpoint_name: str = "best",
        overrides: Sequence[str] = (),
        trust_edits: bool = False,
    ):
        self.run_dir = RunDir(run)
        if not trust_edits:
            self.run_dir.require_unedited("trust_edits=True (--trust-edits in commands)")
        saved = checkpoint.load(self.run_dir.require_checkpoints(), checkpoint_name)
        config, label = override_decoding(self.run_dir.load_config(), overrides)
        check_parts_fit(config)
        # evaluations of another checkpoint or decoding get separate files
        labels = [checkpoint_name] if checkpoint_name != "best" else []
        labels += [label] if label else []
        self.suffix = "".join(f".{text}" for text in labels)
        device = select_device(config["trainer"]["device"], config["trainer"]["threads"])
        self.experiment = build_experiment(config, device, self.run_dir.load_tokenizer())
        load_weights(self.experiment.model, saved, self.run_dir)
        self.experiment.model.eval()

    def evaluate(self, split: str = "test") -> Evaluation:
        """Scores a split of the run's data; writes hypotheses and scores into its folder."""
        warn_of_training_recordings(self.experiment, self.run_dir, split)
        return score(self.experiment, self.run_dir, [split], self.suffix)[split]

    def transcribe(self, recordings: str | Path | Iterable[str | Path]) -> list[str]:
        """Transcribes audio files (or one) of any length, rate and number of channels.

        Raises:
            UserError: a file is missing or holds no audio, or the run is not a speech model.
        """
        modality = self.experiment.modality
        if modality is not Modality.SPEECH:
            raise UserError(
                f"{self.run_dir} is a model of {modality.value}, which cannot transcribe audio"
            )
        if isinstance(recordings, str | Path):
            recordings = [recordings]
        return [self._transcribe_file(path) for path in recordings]

    def _transcribe_file(self, path: str | Path) -> str:
        signal = read_audio(path)
        if not signal.any():
            log.warning("%s is silent, so its text is empty: all its samples are equal", path)
            return ""
        texts = [self._transcribe_piece(piece) for piece in split_at_pauses(signal)]
        return " ".join(text for text in texts if text)

    def _transcribe_piece(self, signal: Float[Tensor, " n"]) -> str:
        batch = Batch(
            ids=[""],
            texts=[""],
            inputs=signal[None],
            lengths=torch.tensor([len(signal)]),
            targets=torch.zeros(1, 0, dtype=torch.long),
            target_lengths=torch.zeros(1, dtype=torch.long),
            spans=None,
            modality=Modality.SPEECH,
        )
        batch = batch.to(self.experiment.device)
        return self.experiment.task.decode(self.experiment.model, batch)[0]


def split_at_pauses(signal: Float[Tensor, " n"]) -> Iterator[Float[Tensor, " n"]]:
    """Cuts a recording into pieces of at most 20 s, in the middle of the quietest 0.2 s."""
    # windows of 0.2 s that overlap by three quarters
    window = SAMPLE_RATE // 5
    hop = window // 4
    search_start = (MAX_SECONDS - SEARCH_SECONDS) * SAMPLE_RATE
    limit = MAX_SECONDS * SAMPLE_RATE
    while len(signal) > limit:
        energies = signal[search_start:limit].unfold(0, window, hop).square().sum(-1)
        cut = search_start + int(energies.argmin()) * hop + window // 2
        yield signal[:cut]
        signal = signal[cut:]
    yield signal
