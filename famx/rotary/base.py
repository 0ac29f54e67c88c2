"""Rotary position embeddings: the interface, and rotations of neighbouring pairs of channels."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from famx.rotary._channels import compute_dtype, rotate
from famx.rotary._tables import rotation_table


class Rotary(nn.Module, ABC):
    """Encodes the positions of queries and keys: `x_t <- R(t) x_t`.

    A rotary is built with `head_dim`, the number of channels of one head. R(t) is a rotation of
    these channels with R(0) = I, such that the product of a query and a key depends on the distance
    of their positions alone. A part that cannot guarantee this declares it in `exempt`.
    """

    @abstractmethod
    def forward(self, x: Float[Tensor, "b h t k"], offset: int = 0) -> Float[Tensor, "b h t k"]:
        """Returns x with the vector at index t rotated to position `offset + t`."""


class PairRotary(Rotary):
    """`x_k <- x_k exp(i t frequency_k)` on pairs of neighbouring channels.

    Channels after the last pair pass unrotated.

    Args:
        frequencies: frequencies of the first pairs, in radians per position. They are plain
            numbers, which casting the module to half precision does not round.
        learned: whether the frequencies are parameters.
    """

    def __init__(self, frequencies: tuple[float, ...], learned: bool = False):
        super().__init__()
        self.frequencies = frequencies
        self.frequency = nn.Parameter(torch.tensor(frequencies)) if learned else None

    def angular_frequencies(self) -> tuple[float, ...] | Float[Tensor, " pairs"]:
        """Returns the radians per position of each pair, as plain numbers if they are constant."""
        return self.frequencies if self.frequency is None else self.frequency

    def table(self, offset: int, x: Float[Tensor, "b h t k"]) -> Complex[Tensor, "t pairs"]:
        """Returns the factor of each pair at the positions of x."""
        seq_len = x.shape[-2]
        dtype = compute_dtype(x.dtype)
        return rotation_table(self.angular_frequencies(), offset, seq_len, x.device, dtype)

    def forward(self, x: Float[Tensor, "b h t k"], offset: int = 0) -> Float[Tensor, "b h t k"]:
        """See `Rotary.forward`."""
        return rotate(x, self.table(offset, x))


def geometric_frequencies(n: int, theta: float) -> tuple[float, ...]:
    """Returns n frequencies in radians per position: `theta^(-k/n)`, from 1 down."""
    return tuple(theta ** (-k / n) for k in range(n))


def scaled(frequencies: tuple[float, ...], scale: float) -> tuple[float, ...]:
    """Returns the frequencies times `scale`."""
    return tuple(scale * frequency for frequency in frequencies)


def count_pairs(head_dim: int, minimum: int = 2, **positive: float | int) -> int:
    """Returns the number of pairs of channels in a head.

    Args:
        minimum: smallest `head_dim` that is accepted.
        positive: hyperparameters that must be greater than 0.

    Raises:
        ValueError: `head_dim` is less than `minimum`, or a hyperparameter is not positive.
    """
    if head_dim < minimum:
        raise ValueError(f"head_dim={head_dim} must be at least {minimum}")
    for name, value in positive.items():
        if value <= 0:
            raise ValueError(f"{name}={value} must be greater than 0")
    return head_dim // 2
