"""Examples, and batches of them padded to one length."""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from famx.notation import SAMPLE_RATE

if TYPE_CHECKING:
    pass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    pass


@dataclass
class Batch:
    """Examples padded to one length.

    Args:
        inputs: samples (float) or token ids (int64), zero after each one's length.
        targets: token ids of the texts, zero after each one's length; without a column where there is no text to reach.
        spans: rectangles to blank, each (start, width) in time and (start, width) in mel, shares of the utterance's own
            length and of the mel axis; None where nothing is to be blanked.
        seconds: audio without padding (of text: tokens).
        padding: share of `inputs` that is padding.
    """

    ids: list[str]
    texts: list[str]
    inputs: Shaped[Tensor, "b n"]
    lengths: Int[Tensor, " b"]
    targets: Int[Tensor, "b u"]
    target_lengths: Int[Tensor, " b"]
    spans: Float[Tensor, "b m 4"] | None
    seconds: float
    padding: float

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {
            name: value.to(device, non_blocking=True)
            for name, value in tensors.items()
            if torch.is_tensor(value)
        }
        return replace(self, **moved)

    def shard(self, rank: int, world: int) -> "Batch":
        """Rows rank, rank + world, ... in the padded width of the whole batch."""
        mine = slice(rank, None, world)
        kept = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("seconds", "padding")
        }
        kept = {name: value if value is None else value[mine] for name, value in kept.items()}
        return _measured(**kept)


def _measured(inputs: Tensor, lengths: Tensor, **rest: Any) -> Batch:
    total = int(lengths.sum())
    seconds = total / SAMPLE_RATE if inputs.is_floating_point() else total
    padding = 1 - total / inputs.numel() if inputs.numel() else 0.0
    return Batch(inputs=inputs, lengths=lengths, seconds=float(seconds), padding=padding, **rest)


class Example(NamedTuple):
    """One utterance (n samples of mono float in [-1, 1) at 16 kHz) or one stretch of text (n token ids)."""

    id: str
    signal: Tensor
    text: str
