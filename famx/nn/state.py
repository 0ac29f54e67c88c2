"""State of a pass through a model: caches of decoded positions and messages between layers."""

from collections.abc import Hashable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Cache = dict[str, Tensor]


class DecodeState:
    """Caches between the chunks of a sequence, and messages from layer to layer.

    Args:
        incremental: whether more chunks of the sequence will follow. In a full pass nothing is
            cached, and the state only carries messages between layers.
    """

    def __init__(self, incremental: bool = True):
        self.incremental = incremental
        self._caches: dict[nn.Module, Cache] = {}
        self._positions: dict[nn.Module, int] = {}
        self._messages: dict[Hashable, tuple[int, Cache]] = {}

    def cache(self, module: nn.Module) -> Cache:
        """Returns the cache of a module, or a temporary one in a full pass."""
        if not self.incremental:
            return {}
        return self._caches.setdefault(module, {})

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Replaces the sequences by those with these indices, some of them repeated or absent.

        The first axis of every cached tensor is the sequence.
        """
        for cache in self._caches.values():
            for name, tensor in cache.items():
                cache[name] = tensor.index_select(0, rows)

    def advance(self, module: nn.Module, seq_len: int) -> int:
        """Counts the module's next `seq_len` positions, and returns the first of them."""
        offset = self._positions.get(module, 0)
        if self.incremental:
            self._positions[module] = offset + seq_len
        return offset

    def message(self, module: nn.Module, cross: bool, offset: int) -> Cache:
        """Returns the message from the previous layer's block of the same class.

        The receiver overwrites its entries for the next layer. Self-attention and cross-attention
        have separate messages. A message of another chunk is dropped.

        Args:
            cross: whether the block attends to a memory.
            offset: first position of the chunk.
        """
        key = (type(module), cross)
        sent_at, message = self._messages.get(key, (offset, {}))
        # the message that the last layer left in the previous chunk is not for this chunk
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
    """Returns the positions that a pool averages: the memory, or the sequence so far."""
    if memory is not None:
        return memory
    append_to_cache(cache, **{name: x})
    return cache[name]
