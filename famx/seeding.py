"""Seeds: every random draw is a function of (seed, purpose, index)."""

import hashlib
import json
import random
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def seed_for(seed: int, purpose: str, *index: int) -> int:
    """Returns the seed of one random draw, a function of the run's seed, a purpose and an index."""
    key = json.dumps([seed, purpose, *index]).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "little") >> 1


def numpy_rng(seed: int, purpose: str, epoch: int, index: int = 0) -> np.random.Generator:
    """Returns a new generator for one purpose; equal arguments give equal draws."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), epoch, index])


def torch_generator(seed: int, step: int) -> torch.Generator:
    """Returns a new generator on the CPU for one step; the global generator is not read."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def seed_global_generators(seed: int, device: torch.device) -> None:
    """Seeds torch's, numpy's and Python's generators, so that a part may use any of them."""
    # torch.manual_seed also seeds devices that are not used, or records its caller for them
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def rng_state() -> dict[str, Any]:
    """Returns the state of every global random generator, as a tree that a checkpoint accepts."""
    legacy = np.random.get_state(legacy=False)
    assert isinstance(legacy, dict)
    # safetensors has no unsigned 32-bit type
    numpy_state = {
        "key": torch.from_numpy(legacy["state"]["key"].astype("int64")),
        "pos": legacy["state"]["pos"],
        "has_gauss": legacy["has_gauss"],
        "gauss": legacy["gauss"],
    }
    state = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": numpy_state}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restores what `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    saved = state["numpy"]
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": saved["key"].numpy().astype("uint32"), "pos": saved["pos"]},
            "has_gauss": saved["has_gauss"],
            "gauss": saved["gauss"],
        }
    )
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
