"""Batches of like lengths within a budget, in an order and with an augmentation that (seed, epoch, index) decide."""

import itertools
import logging
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from famx.data._audio import resample
from famx.data._tokenizers import encode
from famx.nn.batch import Batch, Example, _measured
from famx.notation import UserError
from famx.seeding import numpy_rng
from famx.validate import COUNT, FACTOR, FRACTION, NON_NEGATIVE, POSITIVE, ConfigSection


@dataclass
class LoaderConfig(ConfigSection):
    """How examples become batches.

    Args:
        batch: budget of a batch with its padding: seconds of audio, or tokens of text; None: 24 seconds, 1,024 tokens.
        buckets: groups of like length that an epoch's order is shuffled within.
        workers: processes that read ahead; 0 reads in the trainer's own.
        speed: factors that recordings are sped up by, one drawn for each.
        snr: how many decibels white noise stays below a recording, one drawn for each; without any there is no noise.
        time_masks: stretches of time that are blanked (SpecAugment, arXiv 1904.08779).
        time_width: longest of them, share of the utterance.
        mel_masks: bands of frequency that are blanked.
        mel_width: widest of them, share of the mel axis.
    """

    batch: Annotated[float | None, POSITIVE] = None
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
                "loader.speed=[] must have a factor, [1.0] for the recordings as they are"
            )


if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)

Key = tuple[int, int]
"""Epoch and index."""
Item = tuple[Example, np.ndarray | None]
"""An example and the rectangles to blank in it."""


@dataclass
class Augmentation:
    """What happens to each item of an epoch.

    Args:
        speed: the factor that it is sped up by.
        snr: decibels that noise stays below it, infinite for none.
        noise: the seed of that noise.
        spans: the rectangles that are blanked.
    """

    speed: Float[np.ndarray, " items"]
    snr: Float[np.ndarray, " items"]
    noise: Int[np.ndarray, " items"]
    spans: Float[np.ndarray, "items masks 4"]

    def apply(self, signal: Float[Tensor, " n"], index: int) -> Float[Tensor, " m"]:
        """The signal of an item, sped up, with its noise."""
        signal = resample(signal, round(100 * self.speed[index]), 100)
        if np.isinf(self.snr[index]):
            return signal
        noise = torch.from_numpy(
            np.random.default_rng(self.noise[index]).standard_normal(len(signal), np.float32)
        )
        return signal + noise * signal.square().mean().sqrt() * 10 ** (-self.snr[index] / 20)


def augmentation(config: LoaderConfig, seed: int, epoch: int, items: int) -> Augmentation:
    """A function of its arguments; nothing reads what was drawn before."""
    masks = config.time_masks + config.mel_masks
    rows = np.arange(masks)
    start = np.where(rows < config.time_masks, 0, 2)
    place, width = numpy_rng(seed, "masks", epoch).random((2, items, masks), dtype=np.float32)
    width *= np.where(start == 0, config.time_width, config.mel_width)
    spans = np.tile(np.array([0, 1, 0, 1], np.float32), (items, masks, 1))
    spans[:, rows, start], spans[:, rows, start + 1] = place * (1 - width), width
    snr = numpy_rng(seed, "snr", epoch).choice(config.snr or [np.inf], items)
    noise = numpy_rng(seed, "noise", epoch).integers(2**63, size=items)
    return Augmentation(
        numpy_rng(seed, "speed", epoch).choice(config.speed, items), snr, noise, spans
    )


def bucketed(
    lengths: Float[np.ndarray, " items"], buckets: int, rng: np.random.Generator
) -> Int[np.ndarray, " items"]:
    """Indices by length, shuffled within `buckets` groups of equal count."""
    groups = np.array_split(np.argsort(lengths, kind="stable"), buckets)
    return np.concatenate([rng.permutation(group) for group in groups])


def filled(
    order: Int[np.ndarray, " items"], lengths: Float[np.ndarray, " items"], budget: float
) -> list[list[int]]:
    """`order` cut into batches whose rows x longest stay within `budget`, one item at the least in each."""
    batches: list[list[int]] = []
    longest = 0.0
    for index in order:
        longest = max(longest, float(lengths[index]))
        if not batches or longest * (len(batches[-1]) + 1) > budget:
            batches.append([])
            longest = float(lengths[index])
        batches[-1].append(int(index))
    return batches


class _Items(torch.utils.data.Dataset):
    """What a worker does: reads, speeds up, masks, pads."""

    def __init__(
        self,
        dataset: Any,
        tokenizer: "Tokenizer | None",
        augment: Callable[[int], Augmentation] | None,
    ) -> None:
        self.dataset, self.tokenizer, self.augment = dataset, tokenizer, augment
        self.left_out: set[str] = set()
        self._turn_to(0)

    def _turn_to(self, epoch: int) -> None:
        self.epoch, self.view = epoch, self.dataset.at(epoch)
        self.augmentation = self.augment(epoch) if self.augment else None

    def __getitem__(self, key: Key) -> Item | UserError:
        epoch, index = key
        if epoch != self.epoch:
            self._turn_to(epoch)
        try:
            example = self.view[index]
        except UserError as error:
            return error
        if self.augmentation is None:
            return example, None
        signal = self.augmentation.apply(example.signal, index)
        return example._replace(signal=signal), self.augmentation.spans[index]

    def collate(self, items: list[Item | UserError]) -> Batch | UserError | None:
        """A batch; or the error of a bad recording, as a value, since a worker's exception arrives as a traceback."""
        errors = [item for item in items if isinstance(item, UserError)]
        if errors and not getattr(self.dataset, "skip_bad", False):
            return errors[0]
        for error in errors:
            if str(error) not in self.left_out:
                log.warning("left out: %s", error)
                self.left_out.add(str(error))
        found = [item for item in items if not isinstance(item, UserError)]
        return self._batch(*zip(*found, strict=True)) if found else None

    def _batch(self, examples: tuple[Example, ...], spans: tuple[np.ndarray | None, ...]) -> Batch:
        targets = [torch.empty(0, dtype=torch.int64) for _ in examples]
        if self.tokenizer:
            targets = [
                torch.tensor(encode(self.tokenizer, e.text, e.id), dtype=torch.int64)
                for e in examples
            ]
        return _measured(
            ids=[example.id for example in examples],
            texts=[example.text for example in examples],
            inputs=pad_sequence([example.signal for example in examples], batch_first=True),
            lengths=torch.tensor([len(example.signal) for example in examples]),
            targets=pad_sequence(targets, batch_first=True),
            target_lengths=torch.tensor([len(target) for target in targets]),
            spans=torch.from_numpy(np.stack(spans))
            if spans[0] is not None and len(spans[0])
            else None,
        )


BATCHES = {"seconds": 24.0, "tokens": 1024.0}


class Loader:
    """Batches of a data part, for training without end, or plainly once.

    Args:
        dataset: `len`, `lengths`, `texts`, `ids`, `unit`, and `at(epoch)[index] -> Example`.
        tokenizer: of the targets; None where the examples have none.
        seed: with the epoch and the index decides every draw.

    Raises:
        UserError: a text has characters that the tokenizer has not.
    """

    def __init__(
        self,
        dataset: Any,
        tokenizer: "Tokenizer | None",
        seed: int = 0,
        config: LoaderConfig | None = None,
    ) -> None:
        self.dataset, self.tokenizer, self.seed = dataset, tokenizer, seed
        self.config = config or LoaderConfig()
        self.budget = self.config.batch or BATCHES[dataset.unit]
        if tokenizer:
            for name, text in zip(dataset.ids, dataset.texts, strict=True):
                encode(tokenizer, text, name)

    def plan(self, epoch: int) -> list[list[Key]]:
        """All batches of an epoch in their order."""
        lengths = np.asarray(self.dataset.at(epoch).lengths, dtype=np.float64)
        if self.dataset.unit == "seconds":
            lengths = lengths / self._augment(epoch).speed
        rng = numpy_rng(self.seed, "order", epoch)
        batches = filled(bucketed(lengths, self.config.buckets, rng), lengths, self.budget)
        return [[(epoch, index) for index in batches[k]] for k in rng.permutation(len(batches))]

    def _augment(self, epoch: int) -> Augmentation:
        return augmentation(self.config, self.seed, epoch, len(self.dataset.at(epoch)))

    def train(self, epoch: int = 0, skip: int = 0) -> Iterator[tuple[int, int, Batch]]:
        """Batches for ever, as (epoch, position in it, batch), from `skip` batches into `epoch` on.

        After (epoch, position) was the last one used, `train(epoch, position + 1)` goes on with exactly the next.
        """
        steps, ahead = itertools.tee(self._steps(epoch, skip))
        augment = self._augment if self.dataset.unit == "seconds" else None
        batches = self._read((keys for _, _, keys in ahead), augment, self.config.workers)
        for (at, position, _), batch in zip(steps, batches, strict=True):
            if batch is not None:
                yield at, position, batch

    def plain(self) -> Iterator[Batch]:
        """Every item once as it is, the shortest first."""
        lengths = np.asarray(self.dataset.lengths, dtype=np.float64)
        keys = [
            [(0, index) for index in batch]
            for batch in filled(np.argsort(lengths, kind="stable"), lengths, self.budget)
        ]
        yield from (batch for batch in self._read(keys, None, 0) if batch is not None)

    def _steps(self, epoch: int, skip: int) -> Iterator[tuple[int, int, list[Key]]]:
        for at in itertools.count(epoch):
            plan = self.plan(at)
            for position in range(skip if at == epoch else 0, len(plan)):
                yield at, position, plan[position]

    def _read(
        self, keys: Iterable[list[Key]], augment: Callable[[int], Augmentation] | None, workers: int
    ) -> Iterator[Batch | None]:
        items = _Items(self.dataset, self.tokenizer, augment)
        reader = torch.utils.data.DataLoader(
            items,
            batch_sampler=keys,
            collate_fn=items.collate,
            num_workers=workers,
            worker_init_fn=_leave_interrupts_to_the_trainer,
            # its own, or starting workers would draw from the global one
            generator=torch.Generator().manual_seed(self.seed),
        )
        for batch in reader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


def _leave_interrupts_to_the_trainer(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
