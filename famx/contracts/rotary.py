"""What every rotary promises."""

import torch
from torch import Tensor, nn

from famx.contracts import Contract, build_for_test, require, require_finite
from famx.contracts import attention as block

HEAD_DIM, FAR = 12, 100_000


def norm_kept(part: type) -> None:
    rotary, x = _rotary(part), torch.randn(2, 3, 9, HEAD_DIM)
    for offset in (0, FAR):
        (y,) = require_finite(rotary(x, offset))
        change = (y.norm(dim=-1) / x.norm(dim=-1) - 1).abs().max()
        require(change < 1e-6, f"changes norms by up to {change:.1e} from position {offset} on")


def starts_at_identity(part: type) -> None:
    # R(0) = I and the distance law together keep norms: a part that does not can be the identity as it starts only
    rotary = (
        build_for_test(part, head_dim=HEAD_DIM)
        if "norm_kept" in getattr(part, "exempt", {})
        else _rotary(part)
    )
    x = torch.randn(2, 3, 1, HEAD_DIM)
    require(
        torch.allclose(*require_finite(rotary(x), x), atol=1e-6), "turns position 0, where R(0) = I"
    )


def offset_continues(part: type) -> None:
    rotary, x = _rotary(part), torch.randn(2, 3, 9, HEAD_DIM)
    require(
        torch.allclose(*require_finite(rotary(x)[..., 4:, :], rotary(x[..., 4:, :], 4)), atol=1e-6),
        "positions from offset=4 on are turned otherwise than the same positions of a whole sequence",
    )


def distance_law(part: type) -> None:
    rotary = _rotary(part)
    q, k = nn.functional.normalize(torch.randn(2, 1, 1, 1, HEAD_DIM), dim=-1)
    for distance in (0, 1, 37):
        near = _score(rotary, q, k, 0, distance)
        for start in (1, 1000, FAR - distance):
            error = (_score(rotary, q, k, start, start + distance) - near).abs().item()
            require(
                error < 1e-5,
                f"the score of positions {start} and {start + distance} differs by {error:.1e} from that of 0 "
                f"and {distance}, so it does not depend on the distance alone",
            )


def leftover_channels(part: type) -> None:
    x = torch.randn(2, 3, 9, 7)
    y = _rotary(part, 7)(x)
    require(y.shape == x.shape, f"turns {tuple(x.shape)} into {tuple(y.shape)}")
    require(
        torch.equal(*require_finite(y[..., 6], x[..., 6])),
        "changes the last of 7 channels, which is left over",
    )


def refuses_or_turns(part: type) -> None:
    for head_dim in (*range(1, 9), 64):
        x = torch.randn(2, 1, 3, head_dim)
        try:
            y = _rotary(part, head_dim)(x, 5)
        except ValueError as error:
            require(
                f"head_dim={head_dim}" in str(error),
                f"refuses head_dim={head_dim} without saying so: {error}",
            )
        else:
            require_finite(y)
            require(y.shape == x.shape, f"turns {head_dim} channels into {tuple(y.shape)}")


def views(part: type) -> None:
    rotary, x = (
        _rotary(part),
        torch.randn(2, 9, 3 * HEAD_DIM + 1)[..., 1:].unflatten(-1, (3, -1)).transpose(1, 2),
    )
    y, z = require_finite(rotary(x), rotary(x.contiguous()))
    require(
        torch.allclose(y, z, atol=1e-6), "turns a view of heads otherwise than a tensor of its own"
    )


def input_kept(part: type) -> None:
    rotary, x = _rotary(part), torch.randn(2, 3, 9, HEAD_DIM)
    before = x.clone()
    rotary(x, 3)
    require(torch.equal(x, before), "changes its input in place")


def half_precision(part: type) -> None:
    rotary, x = _rotary(part), torch.randn(2, 3, 9, HEAD_DIM)
    for dtype, tolerance in ((torch.bfloat16, 1e-2), (torch.float16, 2e-3), (torch.float64, 1e-6)):
        y = rotary(x.to(dtype), FAR)
        require(y.dtype == dtype, f"turns {dtype} into {y.dtype}")
        y, exact = require_finite(y.float(), rotary(x, FAR))
        error = ((y - exact).norm() / x.norm()).item()
        require(
            error < tolerance, f"in {dtype} it is off by {error:.1e}, more than {tolerance:.0e}"
        )


def every_gradient(part: type) -> None:
    rotary, x = _rotary(part), torch.randn(2, 3, 9, HEAD_DIM, requires_grad=True)
    (rotary(x) * torch.randn(2, 3, 9, HEAD_DIM)).sum().backward()
    require(x.grad.isfinite().all() and x.grad.any(), "x gets no finite gradient")
    for name, p in rotary.named_parameters():
        require(p.grad is not None and p.grad.any(), f"parameter {name} gets no gradient")


def autocast(part: type) -> None:
    rotary, x = _rotary(part), torch.randn(2, 3, 9, HEAD_DIM)
    with torch.autocast("cpu", torch.bfloat16):
        y = rotary(x, FAR)
    require(y.dtype == x.dtype, f"under autocast to bfloat16 it turns {x.dtype} into {y.dtype}")
    y, exact = require_finite(y, rotary(x, FAR))
    error = ((y - exact).norm() / x.norm()).item()
    require(error < 1e-5, f"under autocast to bfloat16 it is off by {error:.1e}, more than 1e-05")


def compiles(part: type) -> None:
    """Alone, and beside another for heads of another size."""
    rotary, other = _rotary(part), _rotary(part, 2 * HEAD_DIM)
    x, wide = torch.randn(2, 3, 9, HEAD_DIM, requires_grad=True), torch.randn(2, 3, 9, 2 * HEAD_DIM)
    torch.compiler.reset()  # the parts share their code, and so the number of its compilations that is allowed
    with block._no_shape_hook():
        compiled = torch.compile(
            lambda x, wide: (rotary(x, 5), other(wide, 5)), backend="aot_eager", fullgraph=True
        )
        y, z = compiled(x, wide)
        y.square().sum().backward()
        for found, expected in ((y, rotary(x, 5)), (z, other(wide, 5))):
            require(
                torch.allclose(*require_finite(found, expected), atol=1e-6),
                "compiled, the output is another one",
            )


def _rotary(part: type, head_dim: int = HEAD_DIM) -> nn.Module:
    rotary = build_for_test(part, head_dim=head_dim)
    with torch.no_grad():
        for p in rotary.parameters():
            p += 0.1 * torch.randn_like(p)
    return rotary.eval()


def _score(rotary: nn.Module, q: Tensor, k: Tensor, t: int, s: int) -> Tensor:
    (score,) = require_finite((rotary(q, t) * rotary(k, s)).sum())
    return score


CONTRACT: tuple[Contract, ...] = (
    norm_kept,
    starts_at_identity,
    offset_continues,
    distance_law,
    leftover_channels,
    refuses_or_turns,
    views,
    input_kept,
    half_precision,
    every_gradient,
    autocast,
    compiles,
)
