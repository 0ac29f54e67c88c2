"""Givens rotations in chosen planes, each with a direction and all with a scale that are learned (seed.md)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from famx.registry import register
from famx.rotary.base import PairRotary, exact, geometric, pairs_of, turns, widened


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
            raise ValueError(
                f"pairs={pairs} must be an even number of different channels of head_dim={head_dim}"
            )
        most = len(pairs) // 2 or most
        rot_count = most if rot_count is None else rot_count
        if not 1 <= rot_count <= most:
            raise ValueError(
                f"rot_count={rot_count} must be from 1 to {most}, the planes of head_dim={head_dim}"
            )
        super().__init__(geometric(rot_count, theta))
        # at 0 nothing would turn
        self.direction = nn.Parameter(torch.full((rot_count,), 2.0))
        self.scale = nn.Parameter(torch.tensor(scale))
        plane, sign, partner = (
            torch.full((head_dim,), rot_count),
            torch.zeros(head_dim),
            list(range(head_dim)),
        )
        for k, (i, j) in enumerate(
            zip(pairs[: 2 * rot_count : 2], pairs[1 : 2 * rot_count : 2], strict=True)
        ):
            partner[i], partner[j], plane[[i, j]], sign[i], sign[j] = j, i, k, -1, 1
        self.register_buffer("plane", plane, persistent=False)
        self.register_buffer("sign", sign, persistent=False)
        # neighbours whose partners are neighbours too are exchanged as one
        starts = [i for i in range(head_dim) if i == 0 or partner[i] != partner[i - 1] + 1]
        runs = [
            (partner[i], stop - i) for i, stop in zip(starts, [*starts[1:], head_dim], strict=True)
        ]
        self.sizes = [size for _, size in sorted(runs)] if pairs else []
        self.order = [sorted(runs).index(run) for run in runs]

    def speeds(self) -> Float[Tensor, "pairs"]:
        scale = exact(self.scale)
        ladder = torch.tensor(self.frequencies, dtype=scale.dtype, device=scale.device)
        return ladder * scale * exact(self.direction).tanh()

    def forward(self, x: Float[Tensor, "b h t k"], offset: int = 0) -> Float[Tensor, "b h t k"]:
        """See `PairRotary.forward`."""
        if not self.sizes:
            return super().forward(x, offset)
        wide = x.to(widened(x.dtype))
        # a last plane, which does not turn, holds the channels in none
        table = turns(
            pad(self.speeds(), (0, 1))[self.plane] * self.sign,
            offset,
            x.shape[-2],
            x.device,
            wide.dtype,
        )
        pieces = wide.split(self.sizes, dim=-1)
        across = torch.cat([pieces[k] for k in self.order], dim=-1)
        return (
            across.mul_(table.imag.contiguous()).addcmul_(wide, table.real.contiguous()).type_as(x)
        )
