"""Batches of similar lengths; order and augmentation follow from (seed, epoch, index)."""

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer

from famx.data._tokenizers import encode
from famx.data.base import Dataset
from famx.nn.batch import Batch
from famx.notation import SAMPLE_RATE, Modality, UserError
from famx.seeding import numpy_rng
from famx.training.augmentation import Augmentation, sample_augmentation
from famx.training.fixed_shapes import Shape, choose_shapes, fill_shapes, padded_samples
from famx.training.loader_config import LoaderConfig
from famx.training.reader import PlannedBatch, ReadBatch, Reader, collate, ignore_interrupts

# epochs whose lengths decide the fixed shapes, if each epoch has other examples
EPOCHS_MEASURED = 8

ReadStep = tuple[int, int, Batch]
"""Epoch, position of the batch in it, and the batch."""


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
        device: device that the batches are moved to. For CUDA, they are in pinned memory, and
            other processes read them by default.

    Attributes:
        shapes: fixed shapes of the training batches, the shortest first; empty for no fixed shapes.
            Other shapes are rare: the last batch of an epoch, one with a skipped example, and one
            with a recording longer than its data set states or than in the first epochs.

    Raises:
        UserError: a text has characters that the tokenizer does not have.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: Tokenizer | None,
        seed: int = 0,
        config: LoaderConfig | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.dataset = dataset
        self.tokenizer = tokenizer
        self.seed = seed
        self.config = config or LoaderConfig()
        self.device = device or torch.device("cpu")
        self.budget = self.config.budget(dataset.modality)
        dataset.use_cache(self.config.cache_bytes())
        # unknown characters raise here and not after hours of training
        longest_target = self._longest_target(dataset)
        # blocks of text have one length already
        self.shapes: list[Shape] = []
        n_shapes = self.config.n_shapes(self.device)
        if n_shapes and dataset.modality is Modality.SPEECH:
            self.shapes = self._choose_shapes(n_shapes, longest_target)

    def plan(self, epoch: int) -> list[PlannedBatch]:
        """Returns all batches of an epoch in their order."""
        rng = numpy_rng(self.seed, "order", epoch)
        batches: list[tuple[list[int], Shape | None]] = []
        if self.shapes:
            batches += self._fill_shapes(epoch, rng)
        else:
            batches += [(indices, None) for indices in self._cut_epoch(epoch, rng)]
        # batches of similar lengths, in random order
        plan = []
        for position, number in enumerate(rng.permutation(len(batches))):
            indices, shape = batches[number]
            plan.append(PlannedBatch(epoch, position, indices, shape))
        return plan

    def train_batches(self, epoch: int = 0, skip: int = 0) -> Iterator[ReadStep]:
        """Yields endless augmented batches, with their epoch and their position in it.

        The first batch is number `skip` of `epoch`. If (epoch, position) was the last batch used,
        `train_batches(epoch, position + 1)` continues with exactly the next one.
        """
        augment = self._augmentation if self.dataset.modality is Modality.SPEECH else None
        workers = self.config.n_workers(self.device)
        yield from self._read(self._steps(epoch, skip), augment, workers)

    def eval_batches(self) -> Iterator[Batch]:
        """Yields batches of every example once, unchanged, the shortest first."""
        for _, _, batch in self._read(self._eval_plan(), None, 0):
            yield batch

    def n_eval_batches(self) -> int:
        """Returns the number of batches of `eval_batches`."""
        return len(self._eval_plan())

    def _eval_plan(self) -> list[PlannedBatch]:
        lengths = np.asarray(self.dataset.lengths, dtype=np.float64)
        order = np.argsort(lengths, kind="stable")
        plan = []
        for position, indices in enumerate(cut_into_batches(order, lengths, self.budget)):
            plan.append(PlannedBatch(0, position, indices, None))
        return plan

    def _longest_target(self, dataset: Dataset) -> int:
        """Returns the number of token ids of the longest text, 0 without a tokenizer.

        Raises:
            UserError: a text has characters that the tokenizer does not have.
        """
        longest = 0
        if self.tokenizer:
            for name, text in zip(dataset.ids, dataset.texts, strict=True):
                longest = max(longest, len(encode(self.tokenizer, text, name)))
        return longest

    def _choose_shapes(self, n_shapes: int, longest_target: int) -> list[Shape]:
        """Chooses the fixed shapes, from the data set and the options alone."""
        seconds = [self.dataset.lengths]
        for epoch in range(1, EPOCHS_MEASURED):
            view = self.dataset.at(epoch)
            if view is self.dataset:  # the same examples in every epoch
                break
            seconds.append(view.lengths)
            longest_target = max(longest_target, self._longest_target(view))
        # a recording has each of the speeds equally often
        speeds = np.asarray(self.config.speed, dtype=np.float64)
        durations = np.concatenate(seconds).astype(np.float64)
        lengths = padded_samples(durations[:, None], speeds).flatten()
        n_epochs = len(seconds) * len(speeds)
        budget = self.budget * SAMPLE_RATE
        return choose_shapes(lengths, n_epochs, budget, n_shapes, longest_target)

    def _fill_shapes(self, epoch: int, rng: np.random.Generator) -> list[tuple[list[int], Shape]]:
        """Divides the examples of an epoch into batches of the fixed shapes."""
        seconds = np.asarray(self.dataset.at(epoch).lengths, dtype=np.float64)
        lengths = padded_samples(seconds, self._augmentation(epoch).speed)
        return fill_shapes(lengths, self.shapes, rng)

    def _cut_epoch(self, epoch: int, rng: np.random.Generator) -> list[list[int]]:
        """Divides the examples of an epoch into batches as long as their longest example."""
        # lengths after the change of speed, since batches hold the changed recordings
        lengths = np.asarray(self.dataset.at(epoch).lengths, dtype=np.float64)
        if self.dataset.modality is Modality.SPEECH:
            lengths = lengths / self._augmentation(epoch).speed
        order = shuffle_in_buckets(lengths, self.config.buckets, rng)
        return cut_into_batches(order, lengths, self.budget)

    def _augmentation(self, epoch: int) -> Augmentation:
        n_items = len(self.dataset.at(epoch))
        return sample_augmentation(self.config, self.seed, epoch, n_items)

    def _steps(self, epoch: int, skip: int) -> Iterator[PlannedBatch]:
        """Yields the plan of an epoch from batch `skip` on, then those of all later epochs."""
        yield from self.plan(epoch)[skip:]
        for next_epoch in itertools.count(epoch + 1):
            yield from self.plan(next_epoch)

    def _read(
        self,
        plan: Iterable[PlannedBatch],
        augment: Callable[[int], Augmentation] | None,
        workers: int,
    ) -> Iterator[ReadStep]:
        """Yields the batches of a plan, without those of which all examples are skipped.

        Raises:
            UserError: an example cannot be read, and the data set does not skip bad examples.
        """
        if workers and self.device.type == "cuda":
            # by name; by file descriptor, each tensor would take a connection to its worker
            torch.multiprocessing.set_sharing_strategy("file_system")
        loader = torch.utils.data.DataLoader(
            Reader(self.dataset, self.tokenizer, augment),
            # an element of the plan is all of a batch
            batch_size=None,
            sampler=plan,
            collate_fn=collate,  # type: ignore[arg-type]  # called with one element
            num_workers=workers,
            # forked workers share the cache of the data set; macOS cannot fork safely
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            worker_init_fn=ignore_interrupts,
            pin_memory=self.device.type == "cuda",
            # otherwise the start of workers would draw from the global generator
            generator=torch.Generator().manual_seed(self.seed),
        )
        for epoch, position, batch in _without_traceback(loader):
            if isinstance(batch, UserError):
                raise batch
            if batch is not None:
                yield epoch, position, batch


def _without_traceback(batches: Iterable[ReadBatch]) -> Iterator[ReadBatch]:
    """Yields the batches; a worker that ends early is reported in one sentence.

    Raises:
        UserError: a worker was killed, for example because the memory was not sufficient.
    """
    try:
        yield from batches
    except RuntimeError as error:
        # torch raises no class of its own
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"a process that reads ahead has ended ({reason}): loader.workers=0 reads without "
            "such processes; the run keeps its checkpoints, from which it can be resumed"
        ) from error
