"""The device of a run, its parallel processes, and the signals that end it."""

import atexit
import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import distributed

from famx.notation import UserError

# options of glibc's mallopt (malloc.h)
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
# Ctrl-C, the end of a job, of a terminal, and what Slurm sends before the end of the time
SIGNALS = tuple(
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if name in signal.Signals.__members__
)


def rank() -> int:
    """Returns the rank of this process under torchrun; only process 0 reports and writes."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Returns the number of processes that share the work."""
    return int(os.environ.get("WORLD_SIZE", 1))


def n_cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def join_process_group(device: torch.device) -> bool:
    """Joins torchrun's other processes, if any; returns whether this is process 0."""
    if world_size() > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        # a thread of the group that still runs at exit would abort the process
        atexit.register(distributed.destroy_process_group)
    return rank() == 0


def select_device(device: str, threads: int | None) -> torch.device:
    """Returns the device to train on and prepares it.

    Args:
        device: auto, cpu, cuda or mps; auto is the first available of cuda, mps, cpu.
        threads: number of CPU threads; None for torch's default.

    Raises:
        UserError: the device is not available.
    """
    # in the order of preference
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    names = [name for name, is_available in available.items() if is_available]
    name = names[0] if device == "auto" else device
    if name not in names:
        raise UserError(
            f"trainer.device={name} is not on this machine, which has {', '.join(names)}"
        )
    if threads:
        torch.set_num_threads(threads)
    if name == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if name == "cpu" and sys.platform == "linux":
        _retain_freed_memory()
    return torch.device(name)


def memory_of(device: torch.device) -> int:
    """Returns the bytes of a device's memory; those of the machine if it has none of its own."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def forward_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Returns the dtype of the products in a forward pass, for `trainer.precision`."""
    is_bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if is_bf16 else torch.float32


def describe_precision(dtype: torch.dtype, device: torch.device) -> str:
    """Returns the name of a precision, and which fp32 products CUDA rounds to TF32 (10 bits)."""
    if dtype is torch.bfloat16:
        return "bf16"
    settings = {
        "matrix products": torch.backends.cuda.matmul.fp32_precision,
        "convolutions": torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
    }
    rounded = [name for name, value in settings.items() if value == "tf32"]
    if device.type != "cuda" or not rounded:
        return "fp32"
    return f"fp32 with TF32 in {' and '.join(rounded)}"


def peak_memory(device: torch.device) -> int:
    """Returns the most memory that was in use, in bytes: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def describe_device(device: torch.device) -> str:
    """Returns the name of a GPU, or the number of CPU threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def _retain_freed_memory() -> None:
    """Lets glibc reuse large freed blocks, which saves a page fault for every page and step."""
    libc = ctypes.CDLL(None)
    try:
        mallopt = libc.mallopt
    except AttributeError:  # another C library
        return
    for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        mallopt(option, 2**30)


@contextlib.contextmanager
def handle_signals(handler: Callable[[int], object]) -> Iterator[None]:
    """Passes the first signal of `SIGNALS` to `handler`; the second has its default effect.

    Signals that the process ignores, as under nohup, stay ignored.
    """
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    previous = {number: old for number, old in previous.items() if old is not signal.SIG_IGN}

    def on_signal(number: int, _: Any) -> None:
        # a second signal finds the previous handler
        signal.signal(number, previous[signal.Signals(number)])
        handler(number)

    for number in previous:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, previous_handler in previous.items():
            signal.signal(number, previous_handler)
