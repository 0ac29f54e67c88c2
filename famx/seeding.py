"""Seeds: every random draw is a function of (seed, purpose, index)."""

import hashlib
import json
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    pass


def seed_for(seed: int, purpose: str, *numbers: int) -> int:
    """The seed of one random draw, a function of the run's seed, its purpose and its place alone."""
    words = json.dumps([seed, purpose, *numbers]).encode()
    return int.from_bytes(hashlib.sha256(words).digest()[:8], "little") >> 1


def numpy_rng(seed: int, purpose: str, epoch: int, index: int = 0) -> np.random.Generator:
    """A fresh generator for one purpose: equal arguments, equal draws, whatever was drawn before and by whom."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), epoch, index])
