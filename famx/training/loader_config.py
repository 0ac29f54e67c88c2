"""The options of the loader: `loader.KEY=VALUE`."""

import os
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar

import torch

from famx.notation import Modality, Seconds, UserError
from famx.training.device import n_cores
from famx.training.fixed_shapes import DEFAULT_SHAPES
from famx.validate import COUNT, FACTOR, FRACTION, NON_NEGATIVE, POSITIVE, ConfigSection, between

MAX_WORKERS = 8  # more than a GPU needs for recordings that are decoded already
MAX_CACHE_GB = 4.0  # 35 hours of recordings
NOISE_SNR = (5.0, 10.0, 15.0, 20.0)  # ratios for a folder of noise, if none are set
SMALL_CORPUS: Seconds = 2 * 3600.0  # trainings of minutes repeat it often, and learn it by heart


@dataclass(frozen=True)
class Masks:
    """Numbers and sizes of the spans that training blanks; see `LoaderConfig`."""

    time_masks: int = 2
    time_masks_per_second: float = 0.0
    time_width: float = 0.05
    time_seconds: Seconds | None = None
    mel_masks: int = 2
    mel_width: float = 0.15

    def __str__(self) -> str:
        counts = [f"{self.time_masks}"] if self.time_masks else []
        if self.time_masks_per_second:
            counts.append(f"{self.time_masks_per_second:g} a second")
        longest = f"{self.time_width:.0%} of the time"
        if self.time_seconds is not None:
            longest += f" and {self.time_seconds:g} s"
        spans = f"{' and '.join(counts) or 'none'} of at most {longest}"
        return f"{spans}; {self.mel_masks} of at most {self.mel_width:.0%} of the mel bins"


MASKS = Masks()
MASKS_OF_SMALL_CORPUS = Masks(
    time_masks=0, time_masks_per_second=0.75, time_width=0.2, time_seconds=0.3, mel_width=0.3
)
# two views are compared, which asks for more masks (CR-CTC, arXiv:2410.05101)
MASKS_OF_TWO_VIEWS = replace(MASKS_OF_SMALL_CORPUS, time_masks_per_second=1.5)


@dataclass
class LoaderConfig(ConfigSection):
    """Options of batches and their augmentation.

    Args:
        batch_seconds: budget of a batch of speech, padding included, in seconds.
        batch_targets: budget of the texts of a batch of speech, padding included, in tokens, beside
            that in seconds; None for no such budget. A transducer needs memory for each pair of a
            frame and a token of all rows.
        batch_tokens: budget of a batch of text, padding included, in tokens.
        batch_rows: budget of a batch of images, padding included, in rows of pixels.
        buckets: groups of similar length, inside which the order of an epoch is shuffled.
        shapes: largest number of fixed shapes of training batches of speech, which replace the
            groups; None for 12 on CUDA, which prepares its kernels anew for each shape, otherwise
            for no fixed shapes.
        workers: processes that read ahead; with 0 the process of the trainer reads. None for as
            many as there are free CPU cores, at most 8, if the device is CUDA, otherwise for 0.
        cache_gb: memory for decoded recordings of a split, and as much for each folder of noise or
            rooms, in GB, shared by the workers; None for 4 GB, or for a quarter of the machine's
            memory if that is less.
        speed: factors of speed; one is sampled for each recording.
        snr: ratios of signal to noise in dB; one is sampled for each recording, if any. None are
            [5, 10, 15, 20] with a folder of noise.
        noise: folder of recordings of noise, also in its subfolders, one of which is sampled for
            each recording of speech and added to it: a random part, or all of it repeated where it
            is shorter. None for white noise.
        noise_probability: share of the recordings that a noise of the folder is added to; white
            noise is added to all.
        rooms: folder of recorded impulse responses of rooms, also in its subfolders, one of which
            is sampled for each recording of speech, which is convolved with it before noise is
            added; length and level of the recording stay. None for none.
        room_probability: share of the recordings that are convolved.
        time_masks: number of time spans to blank (SpecAugment, arXiv:1904.08779). If this option
            and the next five are all None, they depend on the amount of training speech: below
            two hours they are 0, 0.75, 0.2, 0.3, 2 and 0.3, with 1.5 in place of 0.75 for two
            views (`task.consistency`), otherwise 2, 0, 0.05, None, 2 and 0.15. If some are set, the
            others are those of large corpora.
        time_masks_per_second: number of further time spans to blank for each second of a recording
            before its change of speed, rounded (arXiv:1912.05533).
        time_width: longest time span, as a fraction of the utterance.
        time_seconds: longest time span in seconds, where that is less than `time_width`; with it,
            masks per second blank as large a part of long recordings as of short ones. None for no
            such bound.
        mel_masks: number of frequency bands to blank.
        mel_width: widest band, as a fraction of the mel axis.
    """

    path_options: ClassVar[tuple[str, ...]] = ("noise", "rooms")

    batch_seconds: Annotated[float, POSITIVE] = 24.0
    batch_targets: Annotated[int | None, COUNT] = None
    batch_tokens: Annotated[int, COUNT] = 1024
    batch_rows: Annotated[int, COUNT] = 512
    buckets: Annotated[int, between(1, 100_000)] = 30
    shapes: Annotated[int | None, between(1, 10_000)] = None
    workers: Annotated[int | None, between(0, 256)] = None
    cache_gb: Annotated[float | None, NON_NEGATIVE] = None
    speed: Annotated[list[float], FACTOR] = field(
        default_factory=lambda: [0.9, 0.95, 1.0, 1.05, 1.1]
    )
    snr: list[float] = field(default_factory=list)
    noise: str | None = None
    noise_probability: Annotated[float, FRACTION] = 0.5
    rooms: str | None = None
    room_probability: Annotated[float, FRACTION] = 0.5
    time_masks: Annotated[int | None, between(0, 1000)] = None
    time_masks_per_second: Annotated[float | None, between(0, 100)] = None
    time_width: Annotated[float | None, FRACTION] = None
    time_seconds: Annotated[float | None, POSITIVE] = None
    mel_masks: Annotated[int | None, between(0, 1000)] = None
    mel_width: Annotated[float | None, FRACTION] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.speed:
            raise UserError(
                "loader.speed=[] must have at least one factor; [1.0] leaves recordings unchanged"
            )

    def masks(self, seconds: Seconds, two_views: bool = False) -> Masks:
        """Returns what is blanked, given the amount of training speech."""
        if self.regularizes(seconds):
            return MASKS_OF_TWO_VIEWS if two_views else MASKS_OF_SMALL_CORPUS
        return replace(MASKS, **self._chosen_masks())

    def regularizes(self, seconds: Seconds) -> bool:
        """Whether the defaults of small corpora apply to an amount of training speech."""
        return seconds < SMALL_CORPUS and not self._chosen_masks()

    def _chosen_masks(self) -> dict[str, Any]:
        """Returns the options of masks that are set."""
        options = {option.name: getattr(self, option.name) for option in fields(Masks)}
        return {name: value for name, value in options.items() if value is not None}

    @property
    def has_masks(self) -> bool:
        """Whether anything is blanked."""
        # for any amount of speech, since the defaults of all amounts have masks
        masks = self.masks(SMALL_CORPUS)
        return masks.time_masks + masks.mel_masks + masks.time_masks_per_second > 0

    def budget(self, modality: Modality) -> float:
        """Returns the budget of a batch, in seconds, in tokens or in rows of pixels."""
        if modality is Modality.SPEECH:
            return self.batch_seconds
        return float(self.batch_tokens if modality is Modality.TEXT else self.batch_rows)

    def n_shapes(self, device: torch.device) -> int:
        """Returns the largest number of fixed shapes for a device, 0 for no fixed shapes."""
        if self.shapes is not None:
            return self.shapes
        return DEFAULT_SHAPES if device.type == "cuda" else 0

    def n_workers(self, device: torch.device) -> int:
        """Returns the number of processes that read ahead for a device."""
        if self.workers is not None:
            return self.workers
        if device.type != "cuda":
            return 0
        # each process of the trainer needs a core
        return max(0, min(MAX_WORKERS, n_cores() // _n_trainers() - 1))

    def cache_bytes(self) -> int:
        """Returns the memory for decoded recordings of a split, in bytes."""
        if self.cache_gb is not None:
            return int(self.cache_gb * 1e9)
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return min(int(MAX_CACHE_GB * 1e9), memory // 4 // _n_trainers())


def _n_trainers() -> int:
    """Returns the number of processes of torchrun on this machine, each with its own workers."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))
