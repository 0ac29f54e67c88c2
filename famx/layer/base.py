"""What layers share: a dropout that is cheap on a CPU."""

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """`x * keep / (1 - p)` in training, `x` in evaluation; `keep` is 0 with probability p for each element.

    One random byte an element, drawn eight at a time, so p is a multiple of 1/256 (0.1 becomes 26/256); scaled
    by that same p, so the mean is exact.

    Args:
        p: probability of dropping an element, in [0, 1).
    """

    def __init__(self, p: float = 0.1):
        super().__init__()
        self.cut = round(p * 256)
        if not 0 <= self.cut < 256:
            raise ValueError(f"dropout={p} is not in [0, 1)")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.cut == 0:
            return x
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device)
        # from the lowest number: without it the sign bit, and so every eighth byte, would not be uniform
        bits = words.random_(-(2**63), None).view(torch.uint8)[: x.numel()].view(x.shape)
        return x * (bits >= self.cut).to(x.dtype).mul_(256 / (256 - self.cut))
