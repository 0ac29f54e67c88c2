"""State of a pass through a model: caches of decoded positions and messages between layers."""

from collections.abc import Hashable

import torch
from jaxtyping import Float
from torch import Tensor, nn

Cache = dict[str, Tensor]


class DecodeState:
    """Caches between the chunks of a sequence, and messages from layer to layer.

    Args:
        incremental: whether more chunks of the sequence will follow. In one full pass nothing is
            cached, and the state carries messages between layers alone.
    """

    def __init__(self, incremental: bool = True):
        self.incremental = incremental
        self._caches: dict[nn.Module, Cache] = {}
        self._positions: dict[nn.Module, int] = {}
        self._messages: dict[Hashable, tuple[int, Cache]] = {}

    def cache(self, module: nn.Module) -> Cache:
        """Returns the cache of one module, in a full pass a temporary one."""
        if not self.incremental:
            return {}
        return self._caches.setdefault(module, {})

    def advance(self, module: nn.Module, seq_len: int) -> int:
        """Counts the module's next `seq_len` positions, and returns where they begin."""
        offset = self._positions.get(module, 0)
        if self.incremental:
            self._positions[module] = offset + seq_len
        return offset

    def message(self, module: nn.Module, cross: bool, offset: int) -> Cache:
        """Returns the message from the previous layer's block of the same class.

        The receiver overwrites its entries for the next layer. Self-attention and cross-attention
        have messages of their own. A message of another chunk is dropped.

        Args:
            cross: whether the block attends to a memory.
            offset: position at which the chunk begins.
        """
        key = (type(module), cross)
        sent_at, message = self._messages.get(key, (offset, {}))
        # the last layer's message of the previous chunk is not for the first layer of this one
        if sent_at != offset:
            message = {}
        self._messages[key] = (offset, message)
        return message


def append_to_cache(cache: Cache, **chunks: Float[Tensor, "... t _"]) -> None:
    """Appends each chunk along time to the tensor of the same name in the cache."""
    for name, chunk in chunks.items():
        cache[name] = torch.cat((cache[name], chunk), -2) if name in cache else chunk


def pool_source(
    name: str, x: Float[Tensor, "b t d"], memory: Float[Tensor, "b s d"] | None, cache: Cache
) -> Float[Tensor, "b _ d"]:
    """Returns the positions that a pool averages: the memory, or the sequence up to now."""
    if memory is not None:
        return memory
    append_to_cache(cache, **{name: x})
    return cache[name]
