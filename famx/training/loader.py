"""Batches of similar lengths; order and augmentation follow from (seed, epoch, index)."""

import itertools
import logging
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from famx.data._audio import resample
from famx.data._tokenizers import encode
from famx.data.base import Dataset
from famx.nn.batch import Batch, Example
from famx.notation import Modality, UserError
from famx.seeding import numpy_rng
from famx.training.loader_config import LoaderConfig

log = logging.getLogger(__name__)

Key = tuple[int, int]
"""Epoch and index of an example."""
Item = tuple[Example, np.ndarray | None]
"""An example and its spans to blank, (masks, 4)."""


@dataclass
class Augmentation:
    """Changes to the examples of one epoch, by their index.

    Args:
        speed: factor of speed.
        snr: signal-to-noise ratio in dB, infinite for no noise.
        noise_seeds: seed of the noise.
        spans: spans to blank, as in `Batch`.
    """

    speed: Float[np.ndarray, " items"]
    snr: Float[np.ndarray, " items"]
    noise_seeds: Int[np.ndarray, " items"]
    spans: Float[np.ndarray, "items masks 4"]

    def apply(self, signal: Float[Tensor, " n"], index: int) -> Float[Tensor, " m"]:
        """Changes the speed of an example, then adds white noise."""
        # faster by 5 % = fewer samples at the same rate
        signal = resample(signal, round(100 * self.speed[index]), 100)
        if np.isinf(self.snr[index]):
            return signal
        # noise whose root mean square is `snr` dB below that of the signal
        rng = np.random.default_rng(self.noise_seeds[index])
        noise = torch.from_numpy(rng.standard_normal(len(signal), np.float32))
        signal_level = signal.square().mean().sqrt()
        return signal + noise * signal_level * 10 ** (-self.snr[index] / 20)


def sample_augmentation(config: LoaderConfig, seed: int, epoch: int, n_items: int) -> Augmentation:
    """Samples the augmentation of an epoch, as a function of the arguments alone."""
    n_masks = config.time_masks + config.mel_masks
    masks = np.arange(n_masks)
    is_time_mask = masks < config.time_masks
    # a span covers all of the other axis
    spans = np.tile(np.array([0, 1, 0, 1], np.float32), (n_items, n_masks, 1))
    start_column = np.where(is_time_mask, 0, 2)
    # widths are uniform from 0 to the largest; positions are uniform where the span fits
    rng = numpy_rng(seed, "masks", epoch)
    position, width = rng.random((2, n_items, n_masks), dtype=np.float32)
    width *= np.where(is_time_mask, config.time_width, config.mel_width)
    spans[:, masks, start_column] = position * (1 - width)
    spans[:, masks, start_column + 1] = width
    return Augmentation(
        speed=numpy_rng(seed, "speed", epoch).choice(config.speed, n_items),
        snr=numpy_rng(seed, "snr", epoch).choice(config.snr or [np.inf], n_items),
        noise_seeds=numpy_rng(seed, "noise", epoch).integers(2**63, size=n_items),
        spans=spans,
    )


def shuffle_in_buckets(
    lengths: Float[np.ndarray, " items"], n_buckets: int, rng: np.random.Generator
) -> Int[np.ndarray, " items"]:
    """Returns all indices by length, shuffled inside each of `n_buckets` equally large groups."""
    buckets = np.array_split(np.argsort(lengths, kind="stable"), n_buckets)
    return np.concatenate([rng.permutation(bucket) for bucket in buckets])


def cut_into_batches(
    order: Int[np.ndarray, " items"], lengths: Float[np.ndarray, " items"], budget: float
) -> list[list[int]]:
    """Cuts indices, in their order, into batches with rows · longest <= budget.

    A batch has at least one item, even if that is longer than the budget.
    """
    batches: list[list[int]] = []
    longest = 0.0
    for index in order:
        # a longer item makes all rows of the batch longer
        longest = max(longest, float(lengths[index]))
        if not batches or longest * (len(batches[-1]) + 1) > budget:
            batches.append([])
            longest = float(lengths[index])
        batches[-1].append(int(index))
    return batches


class Loader:
    """Yields batches of a data set: endless augmented ones for training, or each example once.

    Args:
        dataset: one split.
        tokenizer: tokenizer of the targets; None if the task has no targets but the inputs.
        seed: seed of every random draw, together with the epoch and the index.
        config: options of batches and their augmentation.

    Raises:
        UserError: a text has characters that the tokenizer does not have.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: Tokenizer | None,
        seed: int = 0,
        config: LoaderConfig | None = None,
    ) -> None:
        self.dataset = dataset
        self.tokenizer = tokenizer
        self.seed = seed
        self.config = config or LoaderConfig()
        self.budget = self.config.budget(dataset.modality)
        # unknown characters raise here and not after hours of training
        if tokenizer:
            for name, text in zip(dataset.ids, dataset.texts, strict=True):
                encode(tokenizer, text, name)

    def plan(self, epoch: int) -> list[list[Key]]:
        """Returns all batches of an epoch in their order."""
        # lengths after the change of speed, since batches hold the changed recordings
        lengths = np.asarray(self.dataset.at(epoch).lengths, dtype=np.float64)
        if self.dataset.modality is Modality.SPEECH:
            lengths = lengths / self._augmentation(epoch).speed
        # batches of similar lengths, in random order
        rng = numpy_rng(self.seed, "order", epoch)
        order = shuffle_in_buckets(lengths, self.config.buckets, rng)
        batches = cut_into_batches(order, lengths, self.budget)
        plan = []
        for number in rng.permutation(len(batches)):
            plan.append([(epoch, index) for index in batches[number]])
        return plan

    def train_batches(self, epoch: int = 0, skip: int = 0) -> Iterator[tuple[int, int, Batch]]:
        """Yields endless augmented batches, with their epoch and their position in it.

        The first batch is number `skip` of `epoch`. If (epoch, position) was the last batch used,
        `train_batches(epoch, position + 1)` continues with exactly the next one.
        """
        # the plan is used twice: by the workers, which read ahead, and to label their batches
        steps, steps_ahead = itertools.tee(self._steps(epoch, skip))
        augment = self._augmentation if self.dataset.modality is Modality.SPEECH else None
        keys = (batch_keys for _, _, batch_keys in steps_ahead)
        batches = self._read(keys, augment, self.config.workers)
        for (batch_epoch, position, _), batch in zip(steps, batches, strict=True):
            if batch is not None:
                yield batch_epoch, position, batch

    def eval_batches(self) -> Iterator[Batch]:
        """Yields batches of every example once, unchanged, the shortest first."""
        lengths = np.asarray(self.dataset.lengths, dtype=np.float64)
        order = np.argsort(lengths, kind="stable")
        keys = []
        for indices in cut_into_batches(order, lengths, self.budget):
            keys.append([(0, index) for index in indices])
        for batch in self._read(keys, None, 0):
            if batch is not None:
                yield batch

    def _augmentation(self, epoch: int) -> Augmentation:
        n_items = len(self.dataset.at(epoch))
        return sample_augmentation(self.config, self.seed, epoch, n_items)

    def _steps(self, epoch: int, skip: int) -> Iterator[tuple[int, int, list[Key]]]:
        """Yields the plan of an epoch from batch `skip` on, then those of all later epochs."""
        for next_epoch in itertools.count(epoch):
            plan = self.plan(next_epoch)
            first = skip if next_epoch == epoch else 0
            for position in range(first, len(plan)):
                yield next_epoch, position, plan[position]

    def _read(
        self, keys: Iterable[list[Key]], augment: Callable[[int], Augmentation] | None, workers: int
    ) -> Iterator[Batch | None]:
        """Yields the batch of each list of keys; None where all of its examples are skipped.

        Raises:
            UserError: an example cannot be read, and the data set does not skip bad examples.
        """
        reader = _Reader(self.dataset, self.tokenizer, augment)
        loader = torch.utils.data.DataLoader(
            reader,
            batch_sampler=keys,
            collate_fn=reader.collate,
            num_workers=workers,
            worker_init_fn=_ignore_interrupts,
            # otherwise the start of workers would draw from the global generator
            generator=torch.Generator().manual_seed(self.seed),
        )
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


class _Reader(torch.utils.data.Dataset):
    """The work of one worker: reads examples, augments them, and pads them to batches.

    Errors are returned as values, since a worker's exception would arrive as a traceback.

    Args:
        dataset: one split.
        tokenizer: tokenizer of the targets, or None.
        augment: epoch -> its augmentation; None for no augmentation.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: Tokenizer | None,
        augment: Callable[[int], Augmentation] | None,
    ) -> None:
        self.dataset = dataset
        self.tokenizer = tokenizer
        self.augment = augment
        self.reported: set[str] = set()
        self._start_epoch(0)

    def _start_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.view = self.dataset.at(epoch)
        self.augmentation = self.augment(epoch) if self.augment else None

    def __getitem__(self, key: Key) -> Item | UserError:
        epoch, index = key
        # the keys of a worker are in the order of epochs
        if epoch != self.epoch:
            self._start_epoch(epoch)
        try:
            example = self.view[index]
        except UserError as error:
            return error
        if self.augmentation is None:
            return example, None
        augmented = self.augmentation.apply(example.signal, index)
        return example._replace(signal=augmented), self.augmentation.spans[index]

    def collate(self, items: list[Item | UserError]) -> Batch | UserError | None:
        """Pads items to a batch, without those that could not be read.

        Returns:
            The batch, None where no item is left, or the first error if none may be skipped.
        """
        # each bad example is reported once, although every epoch reads it again
        readable: list[Item] = []
        for item in items:
            if not isinstance(item, UserError):
                readable.append(item)
            elif not self.dataset.skip_bad:
                return item
            elif str(item) not in self.reported:
                log.warning("left out: %s", item)
                self.reported.add(str(item))
        return self._pad(readable) if readable else None

    def _pad(self, items: list[Item]) -> Batch:
        ids = [example.id for example, _ in items]
        texts = [example.text for example, _ in items]
        signals = [example.signal for example, _ in items]
        targets = [self._target(example) for example, _ in items]
        lengths = [len(signal) for signal in signals]
        target_lengths = [len(target) for target in targets]
        # None in evaluation, empty if the config has no masks
        spans = [masks for _, masks in items if masks is not None and len(masks)]
        return Batch(
            ids=ids,
            texts=texts,
            inputs=pad_sequence(signals, batch_first=True),
            lengths=torch.tensor(lengths),
            targets=pad_sequence(targets, batch_first=True),
            target_lengths=torch.tensor(target_lengths),
            spans=torch.from_numpy(np.stack(spans)) if spans else None,
            modality=self.dataset.modality,
        )

    def _target(self, example: Example) -> Int[Tensor, " u"]:
        """Returns the token ids of an example's text, none without a tokenizer."""
        token_ids = encode(self.tokenizer, example.text, example.id) if self.tokenizer else []
        return torch.tensor(token_ids, dtype=torch.int64)


def _ignore_interrupts(worker: int) -> None:
    """Leaves Ctrl-C to the trainer, which saves the run before it stops its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
