"""Loads a trained run, to score a split, to transcribe recordings, or to translate texts."""

import functools
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from famx.data._audio import read_audio
from famx.data._normalisers import NORMALISERS
from famx.data._pairs import encode_source, source_lengths, warn_of_unknown
from famx.decode._recognition import recognize
from famx.decode._transcript import Timestamps, Transcript
from famx.decode._windows import MIN_WINDOW, check_window, frame_step
from famx.decode.base import FrameDecoder
from famx.experiment.build import build_experiment
from famx.experiment.data_record import longest_of_training, warn_of_training_recordings
from famx.experiment.overriding import override_decoding
from famx.experiment.resolve import check_parts_fit
from famx.experiment.scoring import score
from famx.nn.batch import Batch
from famx.notation import SAMPLE_RATE, Modality, Seconds, UserError, suggest
from famx.training import checkpoint
from famx.training.buckets import Budget, cut_into_batches
from famx.training.checkpoint import describe_weights, load_weights
from famx.training.device import select_device
from famx.training.evaluate import Evaluation
from famx.training.loader_config import LoaderConfig
from famx.training.run_dir import RunDir

log = logging.getLogger(__name__)

WINDOW = 30.0  # seconds of a longer recording that pass the model at once
LONGER = 2.0  # times the longest recording of the training, beyond which text may be missing
SEARCHED = 0.25  # part of a piece, its last one, in which the quietest place is searched


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
        self.weights = describe_weights(saved)
        self.experiment.model.eval()

    def evaluate(self, split: str = "test") -> Evaluation:
        """Scores a split of the run's data; writes hypotheses and scores into its folder."""
        warn_of_training_recordings(self.experiment, self.run_dir, split)
        return score(self.experiment, self.run_dir, [split], self.weights, self.suffix)[split]

    @overload
    def transcribe(
        self,
        recordings: str | Path | Iterable[str | Path],
        timestamps: None = None,
        window: Seconds = WINDOW,
    ) -> list[str]: ...
    @overload
    def transcribe(
        self,
        recordings: str | Path | Iterable[str | Path],
        timestamps: Timestamps,
        window: Seconds = WINDOW,
    ) -> list[Transcript]: ...
    def transcribe(
        self,
        recordings: str | Path | Iterable[str | Path],
        timestamps: Timestamps | None = None,
        window: Seconds = WINDOW,
    ) -> list[str] | list[Transcript]:
        """Transcribes audio files (or one) of any length, rate and number of channels.

        Args:
            timestamps: `word` or `char` for transcripts with the times of words or characters, of
                a model of frames (CTC); None for texts alone.
            window: seconds that pass the model at once. A model of frames scores a longer
                recording in overlapping windows; for others it is cut where it is quietest.

        Raises:
            UserError: a file is missing or holds no audio, the run is not a speech model, or its
                model has no frames that could have times.
        """
        modality = self.experiment.modality
        if modality is not Modality.SPEECH:
            raise UserError(
                f"{self.run_dir} is a model of {modality.value}, which cannot transcribe audio"
            )
        check_window("window", window)
        if isinstance(recordings, str | Path):
            recordings = [recordings]
        if timestamps is None:
            return [self._text(self._read(path, window), window) for path in recordings]
        if timestamps not in ("word", "char"):
            raise UserError(f"timestamps={timestamps}{suggest(timestamps, ('word', 'char'))}")
        decoder = self.experiment.task.decoder
        if not isinstance(decoder, FrameDecoder):
            config = self.experiment.config
            task = self.experiment.task
            remedy = "decode=ctc_greedy" if "frames" in task.other_outputs else "a run of task=ctc"
            raise UserError(
                f"task={config['task']['name']} decode={config['decode']['name']} uses no scores "
                f"of frames, so its texts have no times; {remedy} has them"
            )
        transcripts = []
        for path in recordings:
            signal = self._read(path, window)
            transcripts.append(self._recognize(decoder, signal, window, timestamps))
        return transcripts

    def translate(self, texts: str | Sequence[str]) -> list[str]:
        """Translates texts (or one); the translation of a text without characters is empty.

        A warning counts characters that no text of the training has.

        Raises:
            UserError: the run is not one of task=translate.
        """
        task = self.experiment.task
        if self.experiment.modality is not Modality.TEXT or task.output != "text":
            name = self.experiment.config["task"]["name"]
            raise UserError(
                f"{self.run_dir} is a run of task={name}; a run of task=translate translates"
            )
        if isinstance(texts, str):
            texts = [texts]
        # as the training data
        config = self.experiment.config
        normalise = NORMALISERS[config["data"].get("normaliser", "none")]
        sources = [normalise(text) for text in texts]
        tokenizer = self.experiment.tokenizer
        warn_of_unknown(sources, tokenizer, "texts")
        # batches of similar lengths
        lengths = np.array(source_lengths(sources, tokenizer), np.float64)
        order = np.argsort(lengths, kind="stable")
        order = np.array([index for index in order if sources[index]], np.int64)
        budget = LoaderConfig(**config["loader"]).budget(Modality.TEXT)
        translations = [""] * len(sources)
        for indices in cut_into_batches(order, Budget(lengths, budget)):
            signals = [encode_source(sources[index], tokenizer) for index in indices]
            batch = _batch(signals, Modality.TEXT).to(self.experiment.device)
            decoded = task.decode(self.experiment.model, batch)
            for index, translation in zip(indices, decoded, strict=True):
                translations[index] = translation
        return translations

    @functools.cached_property
    def _longest(self) -> Seconds:
        """The longest recording of the training; 0 if it is not known, as of an exported run."""
        if not self.run_dir.data_file.is_file():
            return 0.0
        return longest_of_training(self.run_dir.read_record(self.run_dir.data_file))

    def _read(self, path: str | Path, window: Seconds) -> Float[Tensor, " n"]:
        """Reads a recording; warns if more of it passes the model at once than it has learned."""
        signal = read_signal(path)
        seconds = min(len(signal) / SAMPLE_RATE, window)
        if 0 < LONGER * self._longest < seconds:
            log.warning(
                "%s passes the model in pieces of up to %.0f s, and the longest recording of its "
                "training has %.1f s, so that text may be missing: --window=%d makes shorter ones",
                path,
                seconds,
                self._longest,
                max(MIN_WINDOW, math.ceil(self._longest)),
            )
        return signal

    def _text(self, signal: Float[Tensor, " n"], window: Seconds) -> str:
        if not signal.any():
            return ""
        decoder = self.experiment.task.decoder
        if len(signal) > window * SAMPLE_RATE and isinstance(decoder, FrameDecoder):
            return self._recognize(decoder, signal, window).text
        pieces = split_at_pauses(signal, window)
        texts = [self._transcribe_piece(piece) for piece in pieces]
        return " ".join(text for text in texts if text)

    def _recognize(
        self,
        decoder: FrameDecoder,
        signal: Float[Tensor, " n"],
        window: Seconds,
        timestamps: Timestamps | None = None,
    ) -> Transcript:
        if not signal.any():
            return Transcript("")
        model = self.experiment.model
        step = frame_step(model.frontend.n_frames)
        signal = signal.to(self.experiment.device)
        return recognize(model, decoder, signal, step, window, timestamps)

    def _transcribe_piece(self, signal: Float[Tensor, " n"]) -> str:
        batch = _batch([signal], Modality.SPEECH).to(self.experiment.device)
        return self.experiment.task.decode(self.experiment.model, batch)[0]


def _batch(signals: Sequence[Shaped[Tensor, " _"]], modality: Modality) -> Batch:
    """Returns a batch of signals without targets."""
    size = len(signals)
    return Batch(
        ids=[""] * size,
        texts=[""] * size,
        inputs=pad_sequence(list(signals), batch_first=True),
        lengths=torch.tensor([len(signal) for signal in signals]),
        targets=torch.zeros(size, 0, dtype=torch.long),
        target_lengths=torch.zeros(size, dtype=torch.long),
        spans=None,
        modality=modality,
    )


def read_signal(path: str | Path) -> Float[Tensor, " n"]:
    """Reads a recording; a warning names one that is silent, whose text is empty.

    Raises:
        UserError: the file is missing or holds no audio.
    """
    signal = read_audio(path)
    if not signal.any():
        log.warning("%s is silent, so its text is empty: all its samples are equal", path)
    return signal


def split_at_pauses(
    signal: Float[Tensor, " n"], max_seconds: Seconds
) -> Iterator[Float[Tensor, " n"]]:
    """Cuts a recording into pieces of at most so many seconds, in the middle of the quietest 0.2 s.

    The quietest place is searched in the last quarter of each piece.
    """
    # windows of 0.2 s that overlap by three quarters
    window = SAMPLE_RATE // 5
    hop = window // 4
    limit = int(max_seconds * SAMPLE_RATE)
    search_start = int((1 - SEARCHED) * limit)
    while len(signal) > limit:
        energies = signal[search_start:limit].unfold(0, window, hop).square().sum(-1)
        cut = search_start + int(energies.argmin()) * hop + window // 2
        yield signal[:cut]
        signal = signal[cut:]
    yield signal
