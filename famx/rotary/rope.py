"""Rotates pairs of channels by an angle that grows with position (Su et al. 2021, arXiv:2104.09864)."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from famx.registry import register

_TABLES: dict[tuple, Tensor] = {}


@register
class Rope(nn.Module):
    """`x_k <- x_k * exp(i * t * theta'^(-2k/d))` on pairs of channels, `theta' = theta * rescale^(d/(d-2))`.

    An odd last channel passes unrotated.

    Args:
        theta: the slowest pair turns once in about `2 pi theta` positions.
        rescale: stretches the slow pairs, not the fast ones, to sequences that many times longer (NTK-aware).
        learned: the frequencies are parameters, in radians per position.
    """

    def __init__(self, head_dim: int, *, theta: float = 10000.0, rescale: float = 1.0, learned: bool = False):
        super().__init__()
        if head_dim < 2 or theta <= 0 or rescale <= 0:
            raise ValueError(
                f"head_dim={head_dim} must be at least 2, theta={theta} and rescale={rescale} greater than 0"
            )
        pairs = head_dim // 2
        if pairs > 1:
            theta *= rescale ** (pairs / (pairs - 1))
        # plain numbers, which no cast of the module to half precision can blur
        self.frequencies = tuple(theta ** (-k / pairs) for k in range(pairs))
        self.frequency = nn.Parameter(torch.tensor(self.frequencies)) if learned else None

    def forward(self, x: Float[Tensor, "b h t k"], offset: int = 0) -> Float[Tensor, "b h t k"]:
        """Rotates position `offset + t`."""
        rotated, seq_len = 2 * len(self.frequencies), x.shape[-2]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))[..., :rotated]
        if self.frequency is None:
            # lengths in powers of two: few tables, shared by all layers
            size = 1 << (offset + seq_len - 1).bit_length()
            table = _table(self.frequencies, size, x.device, wide.dtype)[offset : offset + seq_len]
        else:
            position = torch.arange(offset, offset + seq_len, dtype=torch.float64)
            table = _turns(position, self.frequency.to("cpu", torch.float64)).to(x.device, wide.dtype.to_complex())
        if any(stride % 2 for stride in wide.stride()[:-1]) or wide.stride(-1) != 1:
            wide = wide.contiguous()
        turned = torch.view_as_real(torch.view_as_complex(wide.unflatten(-1, (-1, 2))) * table)
        turned = turned.flatten(-2).type_as(x)
        return turned if rotated == x.shape[-1] else torch.cat((turned, x[..., rotated:]), dim=-1)


@torch.compiler.assume_constant_result
def _table(
    frequencies: tuple[float, ...], size: int, device: torch.device, dtype: torch.dtype
) -> Complex[Tensor, "{size} pairs"]:
    key = frequencies, size, device, dtype
    if key not in _TABLES:
        # a table first asked for in inference mode must serve training too
        with torch.inference_mode(False), torch.no_grad():
            frequency = torch.tensor(frequencies, dtype=torch.float64)
            _TABLES[key] = _turns(torch.arange(size, dtype=torch.float64), frequency).to(device, dtype.to_complex())
    return _TABLES[key]


def _turns(position: Float[Tensor, "t"], frequency: Float[Tensor, "pairs"]) -> Complex[Tensor, "t pairs"]:
    # in 64 bits: at position 100,000 an angle in 32 bits is wrong by 0.004 radians
    angle = torch.outer(position, frequency)
    return torch.polar(torch.ones_like(angle), angle)
