"""Givens rotations in chosen planes, each with a direction and all with a scale that are learned (seed.md)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from famx.registry import register
from famx.rotary.base import PairRotary, geometric, pairs_of


@register
class GivensRotary(PairRotary):
    """`(x_i, x_j)_k` turns by the angle `t * scale * tanh(direction_k) * theta^(-k/n)`, `k < n`, in n disjoint planes.

    Channels in no plane pass unrotated.

    Args:
        pairs: the planes' channels, `(i0, j0, i1, j1, ...)`, no channel twice; neighbours when empty.
        rot_count: how many of the planes turn; all when None.
        scale: where the learned scale starts.
        theta: how many times slower the plane after the last would turn.
    """

    def __init__(
        self,
        head_dim: int,
        *,
        pairs: tuple[int, ...] = (),
        rot_count: int | None = None,
        scale: float = 1.0,
        theta: float = 10000.0,
    ):
        most = pairs_of(head_dim, scale=scale, theta=theta)
        if len(pairs) % 2 or len(set(pairs)) < len(pairs) or not set(pairs) <= set(range(head_dim)):
            raise ValueError(f"pairs={pairs} must be an even number of different channels of head_dim={head_dim}")
        most = len(pairs) // 2 or most
        rot_count = most if rot_count is None else rot_count
        if not 1 <= rot_count <= most:
            raise ValueError(f"rot_count={rot_count} must be from 1 to {most}, the planes of head_dim={head_dim}")
        super().__init__(geometric(rot_count, theta))
        # at 0 nothing would turn
        self.direction = nn.Parameter(torch.full((rot_count,), 2.0))
        self.scale = nn.Parameter(torch.tensor(scale))
        order = torch.tensor([*pairs, *(i for i in range(head_dim) if i not in pairs)]) if pairs else None
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("place", None if order is None else order.argsort(), persistent=False)

    def speeds(self) -> Float[Tensor, "pairs"]:
        wide = self.direction.double(), self.scale.double()
        return wide[1] * wide[0].tanh() * torch.tensor(self.frequencies).to(wide[0])

    def forward(self, x: Float[Tensor, "b h t k"], offset: int = 0) -> Float[Tensor, "b h t k"]:
        """See `PairRotary.forward`."""
        if self.order is None:
            return super().forward(x, offset)
        turned = super().forward(x.gather(-1, self.order.expand_as(x)), offset)
        return turned.gather(-1, self.place.expand_as(x))
