"""The work of the processes that read ahead: examples are read, augmented and padded to batches."""

import logging
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from famx.data._tokenizers import encode
from famx.data.base import Dataset
from famx.nn.batch import Batch, Example
from famx.notation import UserError
from famx.training.augmentation import Augmentation
from famx.training.fixed_shapes import Shape

log = logging.getLogger(__name__)

# Tensors up to this size are sent between processes by value. A larger one is sent as shared
# memory, for which the receiver opens a connection to the sender: slower for a small tensor.
BYTES_SENT_BY_VALUE = 2**17


class Item(NamedTuple):
    """An example, and its spans to blank in each view, (masks, 4); None without such spans."""

    example: Example
    spans: np.ndarray | None = None
    other_spans: np.ndarray | None = None


class PlannedBatch(NamedTuple):
    """A batch before it is read.

    Args:
        epoch: epoch of the examples.
        position: number of the batch in its epoch.
        indices: indices of the examples in the data set of the epoch.
        shape: fixed shape of the batch; None for the length of the longest example.
    """

    epoch: int
    position: int
    indices: list[int]
    shape: Shape | None


class ReadBatch(NamedTuple):
    """A batch that has been read.

    Args:
        epoch, position: as in `PlannedBatch`.
        batch: the batch; None if all of its examples are skipped; or the error of an example, as a
            value, since a worker's exception would arrive as a traceback.
    """

    epoch: int
    position: int
    batch: Batch | UserError | None


class Reader(torch.utils.data.Dataset):
    """Reads planned batches.

    Args:
        dataset: one split.
        tokenizer: tokenizer of the targets, or None.
        augment: epoch -> its augmentation; None for no augmentation.
        is_strict: whether characters outside the vocabulary are refused.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: Tokenizer | None,
        augment: Callable[[int], Augmentation] | None,
        is_strict: bool = True,
    ) -> None:
        self.dataset = dataset
        self.tokenizer = tokenizer
        self.augment = augment
        self.is_strict = is_strict
        self.reported: set[str] = set()
        self._start_epoch(0)

    def _start_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.view = self.dataset.at(epoch)
        self.augmentation = self.augment(epoch) if self.augment else None

    def __getitem__(self, planned: PlannedBatch) -> ReadBatch:
        try:
            # the batches of a worker are in the order of epochs
            if planned.epoch != self.epoch:
                self._start_epoch(planned.epoch)
            batch = self._read_batch(planned)
        except UserError as error:
            return ReadBatch(planned.epoch, planned.position, error)
        return ReadBatch(planned.epoch, planned.position, batch)

    def _read_batch(self, planned: PlannedBatch) -> Batch | None:
        """Reads a batch, without the examples that cannot be read if the data set skips them.

        Raises:
            UserError: an example cannot be read and must not be skipped, or an augmentation fails.
        """
        readable: list[Item] = []
        for index in planned.indices:
            try:
                example = self.view[index]
            except UserError as error:
                if not self.dataset.skip_bad:
                    raise
                # each bad example is reported once, although every epoch reads it again
                if str(error) not in self.reported:
                    log.warning("left out: %s", error)
                    self.reported.add(str(error))
                continue
            readable.append(self._augment(example, index))
        return self._pad(readable, planned.shape) if readable else None

    def _augment(self, example: Example, index: int) -> Item:
        augmentation = self.augmentation
        if augmentation is None:
            return Item(example)
        example = example._replace(signal=augmentation.apply(example.signal, index))
        other_spans = augmentation.other_spans
        if other_spans is None:
            return Item(example, augmentation.spans[index])
        return Item(example, augmentation.spans[index], other_spans[index])

    def _pad(self, items: list[Item], shape: Shape | None) -> Batch:
        ids = [item.example.id for item in items]
        texts = [item.example.text for item in items]
        signals = [item.example.signal for item in items]
        targets = [self._target(item.example) for item in items]
        lengths = [len(signal) for signal in signals]
        target_lengths = [len(target) for target in targets]
        # a fixed shape may be longer than all examples
        n_samples = shape.samples if shape else 0
        n_tokens = shape.tokens if shape else 0
        return Batch(
            ids=ids,
            texts=texts,
            inputs=pad(signals, n_samples),
            lengths=torch.tensor(lengths),
            targets=pad(targets, n_tokens),
            target_lengths=torch.tensor(target_lengths),
            spans=_stack([item.spans for item in items]),
            modality=self.dataset.modality,
            other_spans=_stack([item.other_spans for item in items]),
        )

    def _target(self, example: Example) -> Int[Tensor, " u"]:
        """Returns the token ids of an example's text, none without a tokenizer."""
        token_ids: list[int] = []
        if self.tokenizer:
            token_ids = encode(self.tokenizer, example.text, example.id, self.is_strict)
        return torch.tensor(token_ids, dtype=torch.int64)


def _stack(spans: Sequence[np.ndarray | None]) -> Float[Tensor, "b m 4"] | None:
    """Returns the spans of all examples; None in evaluation, and if the config has no masks."""
    masks = [
        spans_of_one for spans_of_one in spans if spans_of_one is not None and len(spans_of_one)
    ]
    return torch.from_numpy(np.stack(masks)) if masks else None


def pad(
    sequences: Sequence[Shaped[Tensor, " _ *pixels"]], length: int
) -> Shaped[Tensor, "b n *pixels"]:
    """Pads sequences with zeros to a common length, or to that of the longest if it is more.

    Fixed lengths are for sequences of one dimension.
    """
    padded = pad_sequence(list(sequences), batch_first=True)
    missing = length - padded.shape[1]
    return nn.functional.pad(padded, (0, missing)) if missing > 0 else padded


def collate(read: ReadBatch) -> ReadBatch:
    """Returns a batch as it is, in the place of DataLoader's conversion of arrays to tensors."""
    return read


def ignore_interrupts(worker: int) -> None:
    """Leaves Ctrl-C to the trainer, which saves the run before it stops its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def without_traceback(batches: Iterable[ReadBatch]) -> Iterator[ReadBatch]:
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


def _send_batch(batch: Batch) -> tuple[Callable[[dict[str, Any]], Batch], tuple[dict[str, Any]]]:
    """Reduces a batch to what is sent to another process: small tensors as arrays."""
    fields = dict(vars(batch))
    for name, tensor in batch.tensors.items():
        if tensor.nbytes <= BYTES_SENT_BY_VALUE:
            fields[name] = tensor.numpy()
    return _receive_batch, (fields,)


def _receive_batch(fields: dict[str, Any]) -> Batch:
    # the constructor would compute `amount` and `padding` again
    batch = object.__new__(Batch)
    for name, value in fields.items():
        setattr(batch, name, torch.from_numpy(value) if isinstance(value, np.ndarray) else value)
    return batch


ForkingPickler.register(Batch, _send_batch)
