"""Triton kernels for CUDA, each with a plain form elsewhere that tests compare it with.

The modules that define kernels import Triton, so they are imported only where `available` is True.
With TRITON_INTERPRET=1 in the environment, Triton runs its kernels on a CPU; tests use that.
"""

import importlib.util
from functools import lru_cache

import torch


def available(device: torch.device) -> bool:
    """Returns whether famx's kernels run on the device."""
    return device.type == "cuda" and _has_triton()


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
