"""Base class of layers, and a dropout that is cheap on a CPU."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from famx.nn.state import DecodeState


class Layer(nn.Module, ABC):
    """Connects one attention block and feedforwards by norms and residual sums."""

    @abstractmethod
    def forward(
        self,
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"] | None = None,
        mask: Bool[Tensor, "#b #h #t s"] | None = None,
        state: DecodeState | None = None,
    ) -> Float[Tensor, "b t d"]:
        """Returns the input of the next layer.

        Args:
            memory: positions to attend to; None for those of `x` itself.
            mask: True where a query may attend; None for everywhere.
            state: decode state of the sequence that `x` continues, see `famx.attention.base.Block`.
        """


class Dropout(nn.Module):
    """`x * keep / (1 - p)` in training, `x` in evaluation; `keep` is 0 with probability p, else 1.

    It uses one random byte per element, sampled as words of eight bytes, so p is rounded to a
    multiple of 1/256 (0.1 becomes 26/256). The output is scaled by the rounded p, so its mean is
    exact.

    Args:
        p: probability of dropping an element, in [0, 1).
    """

    def __init__(self, p: float = 0.1):
        super().__init__()
        # an element is dropped where its random byte is below this
        self.threshold = round(p * 256)
        if not 0 <= self.threshold < 256:
            raise ValueError(f"dropout={p} is not in [0, 1)")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.threshold == 0:
            return x
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device)
        # over all numbers: by default the sign bit is 0, and every eighth byte is not uniform
        words.random_(-(2**63), None)
        random_bytes = words.view(torch.uint8)[: x.numel()].view(x.shape)
        keep = (random_bytes >= self.threshold).to(x.dtype)
        return x * keep.mul_(256 / (256 - self.threshold))
