"""Steps that are skipped because a gradient is not finite: restored tensors, and a warning."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from famx.optim._kernels import scalars

MAX_IN_A_ROW = 20


def is_set(flag: Float[Tensor, ""]) -> bool:
    """Returns whether a flag on the host is not 0."""
    return scalars(flag[None]) != [0.0]


@contextmanager
def unchanged_where(found_inf: Float[Tensor, ""], tensors: Sequence[Tensor]) -> Iterator[None]:
    """Restores tensors on exit where `found_inf` is 1, without a device synchronization."""
    saved = [tensor.clone() for tensor in tensors]
    yield
    is_skipped = found_inf > 0
    # torch has no `_foreach_where`, and arithmetic would keep NaN
    for tensor, old in zip(tensors, saved, strict=True):
        torch.where(is_skipped, old, tensor, out=tensor)


class SkipWarning:
    """Warns once after `MAX_IN_A_ROW` skipped steps in a row.

    On the CPU each step is read. On a device, the count of skipped steps is copied every
    `MAX_IN_A_ROW` steps without waiting, and read when the copy has arrived.
    """

    def __init__(self, name: str):
        self.name = name
        self.has_warned = False
        self.in_a_row = 0
        self.calls = 0
        self.previous = 0
        self.copy: Tensor | None = None
        self.arrived: torch.cuda.Event | None = None

    def update(self, found_inf: Float[Tensor, ""], skipped: Tensor) -> None:
        """Counts a step.

        Args:
            skipped: number of skipped steps, this one included.
        """
        device = found_inf.device.type
        if self.has_warned or device == "meta":
            return
        if device == "cpu":
            self.in_a_row = self.in_a_row + 1 if is_set(found_inf) else 0
            if self.in_a_row == MAX_IN_A_ROW:
                self._warn()
            return
        self.calls += 1
        if device == "cuda" and self.calls % MAX_IN_A_ROW == 0:
            self._read_copy()
            self.copy = skipped.to("cpu", non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def _read_copy(self) -> None:
        """Compares the last two copies of the count."""
        if self.copy is None or self.arrived is None or not self.arrived.query():
            return
        count = int(self.copy)
        if count - self.previous == MAX_IN_A_ROW:
            self._warn()
        self.previous = count

    def _warn(self) -> None:
        self.has_warned = True
        warnings.warn(
            f"{self.name} has skipped {MAX_IN_A_ROW} steps in a row, since their gradients are not "
            "finite: the loss has diverged, try a smaller learning rate",
            stacklevel=2,
        )

    def __getstate__(self) -> dict[str, object]:
        # an event can be neither copied nor pickled
        return {**vars(self), "copy": None, "arrived": None}
