"""What every rotary promises."""

import torch
from torch import Tensor, nn

HEAD_DIM, FAR = 12, 100_000


def norm_kept(part: type) -> None:
    rotary, x = _rotary(part), torch.randn(2, 3, 9, HEAD_DIM)
    for offset in (0, FAR):
        change = (rotary(x, offset).norm(dim=-1) / x.norm(dim=-1) - 1).abs().max()
        assert change < 1e-5, f"changes norms by up to {change:.1e} from position {offset} on"


def starts_at_identity(part: type) -> None:
    x = torch.randn(2, 3, 1, HEAD_DIM)
    assert torch.allclose(_rotary(part)(x), x, atol=1e-6), "turns position 0, where R(0) = I"


def offset_continues(part: type) -> None:
    rotary, x = _rotary(part), torch.randn(2, 3, 9, HEAD_DIM)
    assert torch.allclose(rotary(x)[..., 4:, :], rotary(x[..., 4:, :], 4), atol=1e-6), (
        "positions from offset=4 on are turned otherwise than the same positions of a whole sequence"
    )


def distance_law(part: type) -> None:
    rotary = _rotary(part)
    q, k = nn.functional.normalize(torch.randn(2, 1, 1, 1, HEAD_DIM), dim=-1)
    for distance in (0, 1, 37):
        near = _score(rotary, q, k, 0, distance)
        for start in (1, 1000, FAR - distance):
            error = (_score(rotary, q, k, start, start + distance) - near).abs().item()
            assert error < 1e-5, (
                f"the score of positions {start} and {start + distance} differs by {error:.1e} from that of 0 "
                f"and {distance}, so it does not depend on the distance alone"
            )


def leftover_channels(part: type) -> None:
    x = torch.randn(2, 3, 9, 7)
    y = _rotary(part, 7)(x)
    assert y.shape == x.shape, f"turns {tuple(x.shape)} into {tuple(y.shape)}"
    for channels, words in ((slice(None), "all channels"), (slice(6, None), "the last of 7 channels, left over,")):
        change = (y[..., channels].norm(dim=-1) / x[..., channels].norm(dim=-1) - 1).abs().max()
        assert change < 1e-5, f"the norm of {words} changes by up to {change:.1e}"


def half_precision(part: type) -> None:
    rotary, x = _rotary(part), torch.randn(2, 3, 9, HEAD_DIM)
    for dtype, tolerance in ((torch.bfloat16, 1e-2), (torch.float16, 2e-3), (torch.float64, 1e-6)):
        y = rotary(x.to(dtype), FAR)
        assert y.dtype == dtype, f"turns {dtype} into {y.dtype}"
        error = ((y.float() - rotary(x, FAR)).norm() / x.norm()).item()
        assert error < tolerance, f"in {dtype} it is off by {error:.1e}"


def every_gradient(part: type) -> None:
    rotary, x = _rotary(part), torch.randn(2, 3, 9, HEAD_DIM, requires_grad=True)
    (rotary(x) * torch.randn(2, 3, 9, HEAD_DIM)).sum().backward()
    assert x.grad.isfinite().all() and x.grad.any(), "x gets no finite gradient"
    for name, p in rotary.named_parameters():
        assert p.grad is not None and p.grad.any(), f"parameter {name} gets no gradient"


def _rotary(part: type, head_dim: int = HEAD_DIM) -> nn.Module:
    rotary = part(head_dim)
    with torch.no_grad():
        for p in rotary.parameters():
            p += 0.1 * torch.randn_like(p)
    return rotary.eval()


def _score(rotary: nn.Module, q: Tensor, k: Tensor, t: int, s: int) -> Tensor:
    return (rotary(q, t) * rotary(k, s)).sum()
