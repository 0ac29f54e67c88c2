"""What a run computes on: its device, the processes that share the work, and the signals that end it."""

import atexit
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import distributed

from famx.notation import UserError


def rank() -> int:
    """The number of this process among torchrun's; 0 alone reports and writes."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes share the work."""
    return int(os.environ.get("WORLD_SIZE", 1))


def join_process_group(device: torch.device) -> bool:
    """Joins torchrun's other processes, if there are any; whether this is the one that writes."""
    if world_size() > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(
            distributed.destroy_process_group
        )  # a thread of its own, left running, aborts the process
    return rank() == 0


def select_device(device: str, threads: int | None) -> torch.device:
    """The device to train on, ready for it.

    Raises:
        UserError: it is not there.
    """
    have = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    name = next(d for d, there in have.items() if there) if device == "auto" else device
    if not have[name]:
        raise UserError(
            f"trainer.device={name} is not on this machine, which has {', '.join(d for d in have if have[d])}"
        )
    if threads:
        torch.set_num_threads(threads)
    if name == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if name == "cpu" and sys.platform == "linux":
        # glibc gives every large block back to the kernel at once; keeping them saves a page fault a page and step
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
                libc.mallopt(option, 2**30)
    return torch.device(name)


@contextlib.contextmanager
def handle_signals(heard: Callable[[int], Any]) -> Iterator[None]:
    """Tells the first Ctrl-C or SIGTERM to `heard`; a second one acts at once."""

    def note(number: int, _: Any) -> None:
        signal.signal(number, before[number])
        heard(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
