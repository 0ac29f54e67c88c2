"""Examples, and batches of examples padded to one length."""

import copy
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from famx.notation import Modality


class Example(NamedTuple):
    """One utterance, one text, or one image.

    Args:
        id: name of the example, unique in its data set.
        signal: n mono samples of speech at 16 kHz, float in [-1, 1]; n token ids, int64; or n rows
            of pixels, (n, columns, channels), float in [-1, 1].
        text: words of the utterance, or the label of the example; empty for a block of text, whose
            targets are its token ids.
    """

    id: str
    signal: Shaped[Tensor, " n *pixels"]
    text: str


@dataclass
class Batch:
    """Examples padded to one length.

    Args:
        ids: names of the examples.
        texts: texts of the examples.
        inputs: samples (float), token ids (int64) or rows of pixels (float), zero beyond the length
            of each example.
        lengths: number of samples, token ids or rows of each example.
        targets: token ids of the texts, zero beyond the length of each; of width 0 if the task has
            no targets other than the inputs.
        target_lengths: number of token ids of each text.
        spans: m rectangles to blank in each example, (start, width) in time and (start, width) in
            mel, as fractions of the example's length and of the mel axis; None for no rectangles.
        modality: modality of the inputs.
        other_spans: rectangles of a second view of the examples, for a task that compares two.

    Attributes:
        amount: amount of data without padding, in seconds of audio, tokens of text or rows of
            pixels.
        padding: fraction of `inputs` that is padding, in [0, 1].
    """

    ids: list[str]
    texts: list[str]
    inputs: Shaped[Tensor, "b n *pixels"]
    lengths: Int[Tensor, " b"]
    targets: Int[Tensor, "b u"]
    target_lengths: Int[Tensor, " b"]
    spans: Float[Tensor, "b m 4"] | None
    modality: Modality
    other_spans: Float[Tensor, "b m 4"] | None = None
    amount: float = field(init=False)
    padding: float = field(init=False)

    def __post_init__(self) -> None:
        # read here, while the lengths are still on the CPU
        total = int(self.lengths.sum())
        size = self.inputs.shape[0] * self.inputs.shape[1]
        self.amount = self.modality.amount(total)
        self.padding = 1 - total / size if size else 0.0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the batch by the names of their fields."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def to(self, device: torch.device | str) -> "Batch":
        """Returns a copy of the batch whose tensors are on the device.

        The copy waits for the device unless the batch is in pinned memory.
        """
        moved = {}
        for name, tensor in self.tensors.items():
            moved[name] = tensor.to(device, non_blocking=True)
        return self._replace(moved)

    def pin_memory(self) -> "Batch":
        """Returns a copy of the batch in pinned memory; tensors that are pinned are not copied."""
        pinned = {}
        for name, tensor in self.tensors.items():
            # rows of a pinned batch need not be consecutive, and the device copies only such rows
            pinned[name] = tensor.contiguous().pin_memory()
        return self._replace(pinned)

    def _replace(self, tensors: dict[str, Tensor]) -> "Batch":
        """Returns a copy of the batch with other tensors of the same values."""
        # a copy keeps `amount` and `padding`, which would have to be read from the device again
        replaced = copy.copy(self)
        for name, tensor in tensors.items():
            setattr(replaced, name, tensor)
        return replaced

    def shard(self, rank: int, world_size: int) -> "Batch":
        """Returns the rows rank, rank + world_size, ..., padded as in the full batch."""
        rows = slice(rank, None, world_size)
        return Batch(
            ids=self.ids[rows],
            texts=self.texts[rows],
            inputs=self.inputs[rows],
            lengths=self.lengths[rows],
            targets=self.targets[rows],
            target_lengths=self.target_lengths[rows],
            spans=None if self.spans is None else self.spans[rows],
            modality=self.modality,
            other_spans=None if self.other_spans is None else self.other_spans[rows],
        )
