"""The options of the loader: `loader.KEY=VALUE`."""

from dataclasses import dataclass, field
from typing import Annotated

from famx.notation import Modality, UserError
from famx.validate import COUNT, FACTOR, FRACTION, NON_NEGATIVE, POSITIVE, ConfigSection


@dataclass
class LoaderConfig(ConfigSection):
    """Options of batches and their augmentation.

    Args:
        batch_seconds: budget of a batch of speech, padding included, in seconds.
        batch_tokens: budget of a batch of text, padding included, in tokens.
        buckets: groups of similar length, inside which the order of an epoch is shuffled.
        workers: processes that read ahead; with 0 the process of the trainer reads.
        speed: factors of speed; one is sampled for each recording.
        snr: ratios of signal to white noise in dB; one is sampled for each recording, if any.
        time_masks: number of time spans to blank (SpecAugment, arXiv:1904.08779).
        time_width: longest time span, as a fraction of the utterance.
        mel_masks: number of frequency bands to blank.
        mel_width: widest band, as a fraction of the mel axis.
    """

    batch_seconds: Annotated[float, POSITIVE] = 24.0
    batch_tokens: Annotated[int, COUNT] = 1024
    buckets: Annotated[int, COUNT] = 30
    workers: Annotated[int, NON_NEGATIVE] = 0
    speed: Annotated[list[float], FACTOR] = field(
        default_factory=lambda: [0.9, 0.95, 1.0, 1.05, 1.1]
    )
    snr: list[float] = field(default_factory=list)
    time_masks: Annotated[int, NON_NEGATIVE] = 2
    time_width: Annotated[float, FRACTION] = 0.05
    mel_masks: Annotated[int, NON_NEGATIVE] = 2
    mel_width: Annotated[float, FRACTION] = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.speed:
            raise UserError(
                "loader.speed=[] must have at least one factor; [1.0] leaves recordings unchanged"
            )

    def budget(self, modality: Modality) -> float:
        """Returns the budget of a batch, in seconds or in tokens."""
        if modality is Modality.SPEECH:
            return self.batch_seconds
        return float(self.batch_tokens)
