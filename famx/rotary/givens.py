"""Givens rotations in chosen planes, with learned directions and a learned scale (seed.md)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from famx.registry import register
from famx.rotary._channels import compute_dtype
from famx.rotary._tables import constant, rotation_table, to_float64
from famx.rotary.base import PairRotary, count_pairs, geometric_frequencies


@register
class GivensRotary(PairRotary):
    """Rotates plane k of n by the angle `t * scale * tanh(direction_k) * theta^(-k/n)`.

    A plane is a pair of channels, from the first toward the second. Channels in no plane pass
    unrotated.

    Args:
        pairs: channels of the planes, `(i0, j0, i1, j1, ...)`, no channel twice; pairs of
            neighbours when empty.
        rot_count: n, the number of planes that rotate; all when None.
        scale: initial value of the learned scale.
        theta: base of the series: the plane after the last one would rotate theta times slower than
            the first.
    """

    plane: Int[Tensor, " k"]
    sign: Float[Tensor, " k"]

    def __init__(
        self,
        head_dim: int,
        *,
        pairs: tuple[int, ...] = (),
        rot_count: int | None = None,
        scale: float = 1.0,
        theta: float = 10000.0,
    ):
        # which channels form planes, and how many of the planes rotate
        n_planes = count_pairs(head_dim, scale=scale, theta=theta)
        channels = set(pairs)
        if len(pairs) % 2 or len(channels) < len(pairs) or not channels <= set(range(head_dim)):
            raise ValueError(
                f"pairs={pairs} must be an even number of different channels of head_dim={head_dim}"
            )
        if pairs:
            n_planes = len(pairs) // 2
        if rot_count is None:
            rot_count = n_planes
        if not 1 <= rot_count <= n_planes:
            raise ValueError(
                f"rot_count={rot_count} must be from 1 to {n_planes}, "
                f"the planes of head_dim={head_dim}"
            )
        super().__init__(geometric_frequencies(rot_count, theta))
        # learned factors of the frequencies; they start above 0, at which nothing would rotate
        self.direction = nn.Parameter(torch.full((rot_count,), 2.0))
        self.scale = nn.Parameter(torch.tensor(scale))
        # tables of the planes; pairs of neighbours rotate as complex numbers and need none
        planes = list(zip(pairs[::2], pairs[1::2], strict=True))[:rot_count]
        partner = self._assign_planes(head_dim, planes, rot_count)
        self.sizes: list[int] = []
        self.order: list[int] = []
        if pairs:
            self._plan_exchange(partner)

    def _assign_planes(
        self, head_dim: int, planes: list[tuple[int, int]], rot_count: int
    ) -> list[int]:
        """Stores plane and sign of each channel; returns its partner, or itself if it has none.

        `plane` is `rot_count` for channels in no plane.
        """
        partner = list(range(head_dim))
        plane = torch.full((head_dim,), rot_count)
        sign = torch.zeros(head_dim)
        for k, (i, j) in enumerate(planes):
            # x_i cos - x_j sin, and x_j cos + x_i sin
            partner[i] = j
            partner[j] = i
            plane[[i, j]] = k
            sign[i] = -1
            sign[j] = 1
        self.register_buffer("plane", plane, persistent=False)
        self.register_buffer("sign", sign, persistent=False)
        return partner

    def _plan_exchange(self, partner: list[int]) -> None:
        """Stores how to exchange all channels with their partners by one split and one `cat`.

        Runs of neighbours whose partners are neighbours too are moved as one piece.
        """
        head_dim = len(partner)
        starts = [i for i in range(head_dim) if i == 0 or partner[i] != partner[i - 1] + 1]
        stops = [*starts[1:], head_dim]
        runs = []
        for start, stop in zip(starts, stops, strict=True):
            runs.append((partner[start], stop - start))
        pieces = sorted(runs)
        self.sizes = [size for _, size in pieces]
        self.order = [pieces.index(run) for run in runs]

    def angular_frequencies(self) -> Float[Tensor, " pairs"]:
        """Returns the learned radians per position of each plane."""
        scale = to_float64(self.scale)
        frequencies = constant(_vector, (self.frequencies,), scale.device, scale.dtype)
        return frequencies * scale * to_float64(self.direction).tanh()

    def forward(self, x: Float[Tensor, "b h t k"], offset: int = 0) -> Float[Tensor, "b h t k"]:
        """See `Rotary.forward`."""
        if not self.sizes:
            return super().forward(x, offset)
        wide = x.to(compute_dtype(x.dtype))
        # channels in no plane belong to an additional plane, which does not rotate
        frequency = pad(self.angular_frequencies(), (0, 1))[self.plane] * self.sign
        table = rotation_table(frequency, offset, x.shape[-2], x.device, wide.dtype)
        # x_i cos(angle) + x_partner sin(angle), with the sign of the channel in the angle
        pieces = wide.split(self.sizes, dim=-1)
        partners = torch.cat([pieces[k] for k in self.order], dim=-1)
        rotated = partners.mul_(table.imag.contiguous())
        return rotated.addcmul_(wide, table.real.contiguous()).type_as(x)


def _vector(numbers: tuple[float, ...], device: torch.device) -> Float[Tensor, " n"]:
    return torch.tensor(numbers, dtype=torch.float64, device=device)
