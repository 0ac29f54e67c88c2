"""Copies of batches to the device while the previous step trains."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch

from famx.nn.batch import Batch


class Prefetched(NamedTuple):
    """A batch of the loader with the rows that this process trains on.

    Args:
        epoch: epoch of the batch.
        position: number of the batch in its epoch.
        batch: the batch, on the CPU.
        share: the rows of this process, on the CPU, whose lengths can be read without a wait.
        on_device: the same rows on the device, with the same tensors if that is the CPU.
    """

    epoch: int
    position: int
    batch: Batch
    share: Batch
    on_device: Batch


def prefetch(
    steps: Iterable[tuple[int, int, Batch]],
    device: torch.device,
    shard: Callable[[Batch], Batch],
) -> Iterator[Prefetched]:
    """Yields the batches of a loader in their order, with a copy on the device.

    On CUDA, a stream of its own copies the next batch before the current one is yielded; steps on
    the current stream wait for the copy of their batch, the host waits for nothing.

    Args:
        steps: epoch, position and batch, as `Loader.train_batches` yields them.
        shard: returns the rows of a batch that this process trains on.
    """
    if device.type != "cuda":
        for epoch, position, batch in steps:
            share = shard(batch)
            yield Prefetched(epoch, position, batch, share, share.to(device))
        return
    stream = torch.cuda.Stream(device)
    upcoming: tuple[Prefetched, torch.cuda.Event] | None = None
    for epoch, position, batch in steps:
        current = upcoming
        # the device can only read pinned memory while it computes
        share = shard(batch).pin_memory()
        with torch.cuda.stream(stream):
            on_device = share.to(device)
        upcoming = Prefetched(epoch, position, batch, share, on_device), stream.record_event()
        if current:
            yield _await_copy(*current)
    if upcoming:
        yield _await_copy(*upcoming)


def _await_copy(prefetched: Prefetched, copied: torch.cuda.Event) -> Prefetched:
    """Makes the current stream wait for the copy of a batch, and use its memory."""
    stream = torch.cuda.current_stream(prefetched.on_device.inputs.device)
    stream.wait_event(copied)
    for tensor in prefetched.on_device.tensors.values():
        # the memory was allocated for the other stream, which may use it again only after this one
        tensor.record_stream(stream)
    return prefetched
