"""Axis letters, units, and the few words that every room shares.

Axes, the same in jaxtyping and einops: b batch, t time of the queries, s time of the memory, d d_model, h heads,
k head_dim, f mel bins, n raw samples, v vocabulary, w window.
"""

from typing import Literal, NamedTuple

Seconds = float
Hertz = float

Kind = Literal["conv", "attention", "embedding", "norm", "other"]
Layout = Literal["equal", "log", "split"]


class UserError(ValueError):
    """A mistake of the user's, told in one sentence: the verbs print it alone and exit with status 2."""


class TensorInfo(NamedTuple):
    """What momentum and spectrum need to know of one parameter tensor.

    Args:
        shape: of the parameter.
        kind: of the module that owns it.
        base: its momentum where no rule fires, in [0, 1).
        n_bands: frequency bands its gradient is measured in.
        layout: how the bands divide the spectrum.
    """

    shape: tuple[int, ...]
    kind: Kind = "other"
    base: float = 0.9
    n_bands: int = 8
    layout: Layout = "equal"

    @property
    def numel(self) -> int:
        n = 1
        for size in self.shape:
            n *= size
        return n
