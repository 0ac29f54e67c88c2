"""Momentum rules: the interface, and rules that decide by a history of statistics."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from famx.notation import TensorInfo


class MomentumRule(nn.Module, ABC):
    """Chooses a momentum coefficient in [0, 1) for every tensor and step.

    Its state is in buffers that a call replaces and never mutates, so that an optimizer can restore
    them when it skips a step.

    Args:
        tensors: the parameter tensors, in the order of the gradients.

    Attributes:
        base: base momentum of each tensor, which the rule may change.
        rows: indices of the tensors that the rule follows; the others keep their base momentum.
        capturable: whether a CUDA graph can capture calls, that is, whether they never need the
            host.
        observed, metrics: see `famx.nn.hooks.Observed`.
    """

    observed: bool = False
    capturable: bool = True
    base: Float[Tensor, " tensors"]

    def __init__(self, tensors: Sequence[TensorInfo]):
        super().__init__()
        for info in tensors:
            if not 0 <= info.base < 1:
                raise ValueError(
                    f"base={info.base} of a tensor of shape {info.shape} is not in [0, 1)"
                )
        self.tensors = list(tensors)
        self.rows = list(range(len(tensors)))
        self.metrics: dict[str, Tensor] = {}
        # not saved: a function of the parameter groups
        base = torch.tensor([info.base for info in tensors])
        self.register_buffer("base", base, persistent=False)

    @abstractmethod
    def forward(self, gradients: Sequence[Tensor], step: int | Tensor) -> Float[Tensor, " tensors"]:
        """Returns the coefficients.

        Args:
            step: number of the step, from 1; a 0-d tensor if CUDA graphs are to be captured, see
                `famx.optim.base.Optimizer`.
        """


class HistoryRule(MomentumRule):
    """Chooses by h <- beta·h + (1 - beta)·statistics per step, from the first statistics on.

    A subclass registers the buffer `history` and defines how to `choose` by it.

    Args:
        tensors: the parameter tensors, in the order of the gradients.
        beta: decay of the history per step, in [0, 1).
        start_step: number of first steps with the base momentum.
        min_size: number of entries that a tensor must exceed to be followed; smaller tensors keep
            their base momentum.
    """

    index: Tensor
    begun: Bool[Tensor, ""]
    history: Tensor
    coefficients: Float[Tensor, " tensors"]

    def __init__(
        self, tensors: Sequence[TensorInfo], *, beta: float, start_step: int, min_size: int
    ):
        super().__init__(tensors)
        if not 0 <= beta < 1:
            raise ValueError(f"beta={beta} is not in [0, 1)")
        self.beta = beta
        self.start_step = start_step
        self.rows = [row for row, info in enumerate(tensors) if info.numel > min_size]
        self.register_buffer("index", torch.tensor(self.rows, dtype=torch.long), persistent=False)
        # whether the history holds statistics, and the coefficients of the last update
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))
        self.register_buffer("coefficients", self.base.clone())

    def update_history(
        self, due: bool | Bool[Tensor, ""], statistics: Float[Tensor, "..."], every: int
    ) -> None:
        """Updates the history with new statistics, and chooses new coefficients.

        Args:
            due: whether an update is due; a 0-d tensor if steps are counted on the device.
            every: number of steps since the previous statistics.
        """
        moved = self.history.lerp(statistics, 1 - self.beta**every)
        # no branch, which would synchronize with the device
        history = torch.where(self.begun, moved, statistics)
        coefficients = self.base.index_copy(0, self.index, self.choose(history))
        if isinstance(due, Tensor):
            history = torch.where(due, history, self.history)
            coefficients = torch.where(due, coefficients, self.coefficients)
        # buffers are replaced, never mutated
        self.history = history
        self.begun = self.begun | due
        self.coefficients = coefficients

    @abstractmethod
    def choose(self, history: Float[Tensor, "..."]) -> Float[Tensor, " followed"]:
        """Returns the coefficient of each followed tensor."""

    def changed_share(self) -> Float[Tensor, ""]:
        """Returns the share of followed tensors whose coefficient is not their base momentum."""
        return (self.coefficients != self.base)[self.index].float().mean()


class GradientSpectrum(Protocol):
    """The measurements that a rule needs of a spectrum; see `famx.spectrum.base.Spectrum`."""

    fresh: bool | Tensor
    every: int
    white_shares: Float[Tensor, "tensors bands"]

    def __call__(self, gradients: Sequence[Tensor]) -> Float[Tensor, "tensors bands"]:
        """Measures the gradients and returns the share of power in each band."""
        ...

    def degrees_of_freedom(self) -> Float[Tensor, " tensors"]:
        """Returns the number of independent power values in a measurement."""
        ...

    def relative(self, shares: Float[Tensor, "tensors bands"]) -> Float[Tensor, "tensors bands"]:
        """Returns shares in units of white noise, NaN if a band does not exist."""
        ...

    def band_names(self, info: TensorInfo) -> tuple[str, ...]:
        """Returns a name for each band of a tensor."""
        ...


class GradientWindow(GradientSpectrum, Protocol):
    """A spectrum over the last steps that exposes their gradients: `famx.spectrum.temporal`."""

    ring: Float[Tensor, "window tensors coordinates"]
    window: int


SpectrumFactory = Callable[..., nn.Module]  # called with `tensors`
