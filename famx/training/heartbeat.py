"""Heartbeats of the processes of torchrun: one that no longer answers ends the training."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed
from torch.distributed import Store
from torch.distributed.distributed_c10d import _get_default_store

from famx.notation import Seconds, UserError
from famx.training.device import rank, world_size

BEAT: Seconds = 2.0
# after which a process counts as stopped; torchrun then needs up to 30 s to end it
MAX_SILENCE: Seconds = 25.0
# added to the count of a process that has finished, which then no longer changes
FINISHED = 2**40
# parts of the messages of gloo and NCCL where another process has ended; NCCL has other errors too
ENDED = ("onnection closed", "onnection reset", "roken pipe", "remote process exited")


class Heartbeat:
    """A thread that counts upwards in the store of the group, and reads the counts of the others.

    It counts its own beats, so a process that was itself stopped does not blame the others.

    Args:
        store: store of the group.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; the other processes may end in any order from then on."""
        self._is_over.set()
        self._thread.join()

    def _beat(self) -> None:
        counts = [0] * world_size()
        silences = [0] * world_size()
        try:
            self._store.add(_key(rank()), 1)
            while not self._is_over.wait(BEAT):
                self._store.add(_key(rank()), 1)
                for other in range(world_size()):
                    # adding nothing reads a count, and does not wait for one
                    count = self._store.add(_key(other), 0)
                    is_alive = count != counts[other] or count >= FINISHED
                    silences[other] = 0 if is_alive else silences[other] + 1
                    counts[other] = count
                    if silences[other] * BEAT > MAX_SILENCE and not self._is_over.is_set():
                        _end(other)
            self._store.add(_key(rank()), FINISHED)
        except RuntimeError:
            # the store has ended with the process that holds it, which the group reports
            return


@contextmanager
def watch_processes() -> Iterator[None]:
    """Ends this process within a minute if another one of torchrun stops; does nothing alone.

    Raises:
        UserError: another process has ended.
    """
    if world_size() == 1:
        yield
        return
    heartbeat = Heartbeat(_get_default_store().clone())
    heartbeat.start()
    try:
        yield
    except RuntimeError as error:
        if not is_loss_of_a_process(error):
            raise
        raise UserError(
            f"another of the {world_size()} processes has ended; its own message is above, or it "
            "was killed: resume= continues from the last checkpoint"
        ) from error
    finally:
        heartbeat.stop()


def is_loss_of_a_process(error: RuntimeError) -> bool:
    """Returns whether an error of a collective operation says that another process has ended."""
    is_connection = isinstance(error, distributed.DistNetworkError | distributed.DistStoreError)
    return is_connection or any(phrase in str(error) for phrase in ENDED)


def _key(number: int) -> str:
    return f"famx/heartbeat/{number}"


def _end(other: int) -> None:
    """Ends this process, whose main thread waits for the other one."""
    print(
        f"famx: process {other} of {world_size()} (rank {other}) has not answered for "
        f"{MAX_SILENCE:.0f} s: resume= continues from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)
