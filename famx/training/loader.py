"""Batches of similar lengths; order and augmentation follow from (seed, epoch, index)."""

import itertools
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer, models

from famx.data._tokenizers import encode, known_characters, list_characters
from famx.data.base import Dataset
from famx.nn.batch import Batch
from famx.notation import SAMPLE_RATE, Modality, UserError
from famx.seeding import numpy_rng
from famx.training.augmentation import (
    Augmentation,
    Learnable,
    fitting_speeds,
    sample_augmentation,
    sample_speeds_again,
)
from famx.training.buckets import Budget, cut_into_batches, shuffle_in_buckets
from famx.training.fixed_shapes import Shape, choose_shapes, fill_shapes, padded_samples
from famx.training.loader_config import LoaderConfig
from famx.training.reader import (
    PlannedBatch,
    Reader,
    collate,
    ignore_interrupts,
    without_traceback,
)
from famx.training.sounds import Sounds, sounds_of

log = logging.getLogger(__name__)

# epochs whose lengths decide the fixed shapes, if each epoch has other examples
EPOCHS_MEASURED = 8

ReadStep = tuple[int, int, Batch]
"""Epoch, position of the batch in it, and the batch."""


class Loader:
    """Yields batches of a data set: endless augmented ones for training, or each example once.

    Args:
        dataset: one split.
        tokenizer: tokenizer of the targets; None if the task has no targets but the inputs.
        seed: seed of every random draw, together with the epoch and the index.
        config: options of batches and their augmentation.
        learnable: texts that the task can learn from recordings of so many samples; the speed of a
            recording is sampled among those that leave it long enough. None for all.
        device: device that the batches are moved to. For CUDA, they are in pinned memory, and
            other processes read them by default.
        split: name of the split. Texts of train must have no characters outside the vocabulary;
            those of other splits may, as `dataset.unknown` says.

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
        split: str = "train",
        learnable: Learnable | None = None,
        two_views: bool = False,
    ) -> None:
        self.learnable = learnable
        self.two_views = two_views
        self._fits: Bool[np.ndarray, "items speeds"] | None = None
        self._sounds: Sounds | None = None
        self.dataset = dataset
        self.tokenizer = tokenizer
        self.seed = seed
        self.config = config or LoaderConfig()
        self.device = device or torch.device("cpu")
        self.masks = self.config.masks(dataset.total_length, two_views)  # of speech
        self.budget = self.config.budget(dataset.modality)
        dataset.use_cache(self.config.cache_bytes())
        # unknown characters are reported here and not after hours of training
        self.split = split
        # later windows of a stream may have characters that its tokenizer lacks
        self.is_strict = split == "train" and not dataset.n_streamed
        self.skipped = set() if split == "train" else self._check_characters()
        self._n_tokens = self._count_tokens(dataset)
        # blocks of text have one length already
        self.shapes: list[Shape] = []
        n_shapes = self.config.n_shapes(self.device)
        if n_shapes and dataset.modality is Modality.SPEECH:
            self.shapes = self._choose_shapes(n_shapes)

    def load_sounds(self) -> Sounds:
        """Loads the folders of noise and of rooms, which only training needs, when first called.

        Raises:
            UserError: there is no such folder, or no recording in it.
        """
        if self._sounds is None:
            self._sounds = sounds_of(self.config)
        return self._sounds

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
        augment = None
        if self.dataset.modality is Modality.SPEECH:
            augment = self._augmentation
            self._report_speeds(epoch)
        workers = self.config.n_workers(self.device)
        if self.dataset.n_streamed and self.config.workers is None:
            workers = 0  # each process would read all of a stream
        yield from self._read(self._steps(epoch, skip), augment, workers)

    def eval_batches(self) -> Iterator[Batch]:
        """Yields batches of every example once, unchanged, the shortest first."""
        for _, _, batch in self._read(self._eval_plan(), None, 0):
            yield batch

    def read_example(self, index: int) -> Batch | None:
        """Returns an example of an evaluation as a batch of one, None if it cannot be read."""
        plan = [PlannedBatch(0, 0, [index], None)]
        return next((batch for _, _, batch in self._read(plan, None, 0)), None)

    def n_eval_batches(self) -> int:
        """Returns the number of batches of `eval_batches`."""
        return len(self._eval_plan())

    def _eval_plan(self) -> list[PlannedBatch]:
        lengths = np.asarray(self.dataset.lengths, dtype=np.float64)
        order = np.argsort(lengths, kind="stable")
        order = np.array([index for index in order if index not in self.skipped], dtype=np.int64)
        plan = []
        budgets = self._budgets(self.dataset, lengths)
        for position, indices in enumerate(cut_into_batches(order, *budgets)):
            plan.append(PlannedBatch(0, position, indices, None))
        return plan

    def _count_tokens(self, dataset: Dataset) -> Int[np.ndarray, " items"]:
        """Returns the number of token ids of each text, 0 without a tokenizer.

        Raises:
            UserError: a text has characters that the tokenizer does not have.
        """
        lengths = np.zeros(len(dataset), np.int64)
        if self.tokenizer:
            for index, (name, text) in enumerate(zip(dataset.ids, dataset.texts, strict=True)):
                lengths[index] = len(encode(self.tokenizer, text, name, self.is_strict))
        return lengths

    def _budgets(self, view: Dataset, sizes: Float[np.ndarray, " items"]) -> list[Budget]:
        """Returns the budgets of the batches of an epoch, given the sizes of its examples."""
        budgets = [Budget(sizes, self.budget)]
        if self.config.batch_targets and view.modality is Modality.SPEECH:
            targets = self._n_tokens if view is self.dataset else self._count_tokens(view)
            budgets.append(Budget(targets.astype(np.float64), self.config.batch_targets))
        return budgets

    def _check_characters(self) -> set[int]:
        """Counts the texts with characters that the tokenizer lacks; returns those to skip.

        Raises:
            UserError: there are such texts, and the data set refuses them.
        """
        # a label is one token: `encode` refuses those that training does not have
        if not self.tokenizer or isinstance(self.tokenizer.model, models.WordLevel):
            return set()
        known = known_characters(self.tokenizer)
        unknown: Counter[str] = Counter()
        indices = set()
        for index, text in enumerate(self.dataset.texts):
            characters = [character for character in text if character not in known]
            if characters:
                indices.add(index)
                unknown.update(characters)
        if not indices:
            return set()
        first = self.dataset.ids[min(indices)]
        sentence = (
            f"{len(indices)} of {len(self.dataset)} texts of {self.split} have characters that no "
            f"training text has: {list_characters(unknown)}; the first: {first}"
        )
        if self.dataset.unknown == "error":
            raise UserError(f"{sentence} (data.unknown=skip or replace accepts them)")
        if self.dataset.unknown == "skip":
            if len(indices) == len(self.dataset):
                raise UserError(f"{sentence}; none remains with data.unknown=skip")
            log.warning("%s; these examples are skipped (data.unknown=skip)", sentence)
            return indices
        log.warning(
            "%s; these %d characters are counted as errors (data.unknown=replace)",
            sentence,
            unknown.total(),
        )
        return set()

    def _choose_shapes(self, n_shapes: int) -> list[Shape]:
        """Chooses the fixed shapes, from the data set and the options alone."""
        seconds = [self.dataset.lengths]
        longest_target = int(self._n_tokens.max())
        for epoch in range(1, 1 if self.dataset.n_streamed else EPOCHS_MEASURED):
            view = self.dataset.at(epoch)
            if view is self.dataset:  # the same examples in every epoch
                break
            seconds.append(view.lengths)
            longest_target = max(longest_target, int(self._count_tokens(view).max()))
        # a recording has each of the speeds equally often
        speeds = np.asarray(self.config.speed, dtype=np.float64)
        durations = np.concatenate(seconds).astype(np.float64)
        lengths = padded_samples(durations[:, None], speeds).flatten()
        n_epochs = len(seconds) * len(speeds)
        budget = self.budget * SAMPLE_RATE
        # every target is padded to the longest
        max_rows = None
        if self.config.batch_targets and longest_target:
            max_rows = max(1, self.config.batch_targets // longest_target)
        return choose_shapes(lengths, n_epochs, budget, n_shapes, longest_target, max_rows)

    def _fill_shapes(self, epoch: int, rng: np.random.Generator) -> list[tuple[list[int], Shape]]:
        """Divides the examples of an epoch into batches of the fixed shapes."""
        seconds = np.asarray(self.dataset.at(epoch).lengths, dtype=np.float64)
        lengths = padded_samples(seconds, self._augmentation(epoch).speed)
        return fill_shapes(lengths, self.shapes, rng)

    def _cut_epoch(self, epoch: int, rng: np.random.Generator) -> list[list[int]]:
        """Divides the examples of an epoch into batches as long as their longest example."""
        # lengths after the change of speed, since batches hold the changed recordings
        view = self.dataset.at(epoch)
        lengths = np.asarray(view.lengths, dtype=np.float64)
        if self.dataset.modality is Modality.SPEECH:
            lengths = lengths / self._augmentation(epoch).speed
        order = shuffle_in_buckets(lengths, self.config.buckets, rng)
        return cut_into_batches(order, *self._budgets(view, lengths))

    def _augmentation(self, epoch: int) -> Augmentation:
        view = self.dataset.at(epoch)
        sounds = self.load_sounds()
        augmentation = sample_augmentation(
            self.config, self.seed, epoch, view.lengths, self.two_views, sounds, self.masks
        )
        fits = self._fitting_speeds(view)
        if not fits.all():
            sample_speeds_again(augmentation, fits, self.config.speed, self.seed, epoch)
        return augmentation

    def _fitting_speeds(self, view: Dataset) -> Bool[np.ndarray, "items speeds"]:
        """Returns at which factors of speed the recordings stay long enough for their texts."""
        speeds = self.config.speed
        if self.learnable is None:
            return np.ones((len(view), len(speeds)), bool)
        # computed once if the examples are the same in every epoch
        if self._fits is None or view is not self.dataset:
            self._fits = fitting_speeds(view.lengths, view.texts, speeds, self.learnable)
        return self._fits

    def _report_speeds(self, epoch: int) -> None:
        """Warns if some recordings are too short for their texts at some speeds."""
        fits = self._fitting_speeds(self.dataset.at(epoch))
        # those that fit at no speed are reported before training
        n_short = int((~fits.all(1) & fits.any(1)).sum())
        if n_short:
            log.warning(
                "%d of %d recordings are too short for their texts at some of loader.speed=%s; "
                "their speed is sampled among the others",
                n_short,
                len(fits),
                list(self.config.speed),
            )

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
            Reader(self.dataset, self.tokenizer, augment, self.is_strict),
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
        # examples that are left out since the last batch
        n_empty = 0
        for epoch, position, batch in without_traceback(loader):
            if isinstance(batch, UserError):
                raise batch
            if batch is not None:
                n_empty = 0
                yield epoch, position, batch
                continue
            # an epoch has at most as many batches as examples
            n_empty += 1
            if n_empty > len(self.dataset):
                raise UserError(
                    f"none of {len(self.dataset)} examples can be read, and the data set leaves "
                    "out all of them"
                )
