"""Contracts of rotary position embeddings: rotations, by which scores depend on distance alone."""

import torch
from torch import Tensor

from famx.contracts import (
    Contract,
    build_for_test,
    exemptions,
    require,
    require_finite,
    without_shape_hook,
)
from famx.rotary.base import Rotary

# divisible by 2, 3 and 4, into which parts group the channels
HEAD_DIM = 12
# a position far beyond those of training, where an angle in float32 is rounded by up to 0.004
FAR = 100_000


def norm_unchanged(part: type[Rotary]) -> None:
    """Vectors keep their norm, also at far positions."""
    rotary = _build(part)
    x = torch.randn(2, 3, 9, HEAD_DIM)
    for offset in (0, FAR):
        (y,) = require_finite(rotary(x, offset))
        # relative to each vector; a few roundings of float32
        change = (y.norm(dim=-1) / x.norm(dim=-1) - 1).abs().max()
        require(change < 1e-6, f"changes norms by up to {change:.1e} from position {offset} on")


def starts_at_identity(part: type[Rotary]) -> None:
    """Position 0 is not rotated: R(0) = I."""
    # R(0) = I for all parameters and scores by distance alone imply that norms are unchanged; a
    # part that changes norms can be the identity only before its parameters are trained
    trained = "norm_unchanged" not in exemptions(part)
    rotary = _build(part) if trained else build_for_test(part, head_dim=HEAD_DIM)
    x = torch.randn(2, 3, 1, HEAD_DIM)
    (y,) = require_finite(rotary(x))
    require(torch.allclose(y, x, atol=1e-6), "rotates position 0, where R(0) = I")


def offset_continues(part: type[Rotary]) -> None:
    """A chunk at its offset is rotated as within the full sequence."""
    rotary = _build(part)
    x = torch.randn(2, 3, 9, HEAD_DIM)
    # the last five of nine positions
    full, chunk = require_finite(rotary(x)[..., 4:, :], rotary(x[..., 4:, :], 4))
    require(
        torch.allclose(full, chunk, atol=1e-6),
        "positions from offset=4 on are not rotated as within the full sequence",
    )


def depends_on_distance_alone(part: type[Rotary]) -> None:
    """The score of a query and a key depends on the distance of their positions alone."""
    # of unit vectors, so that errors are shares of the largest score
    rotary = _build(part)
    q, k = torch.nn.functional.normalize(torch.randn(2, 1, 1, 1, HEAD_DIM), dim=-1)
    for distance in (0, 1, 37):
        # at the beginning, and at later and far positions
        near = _score(rotary, q, k, 0, distance)
        for start in (1, 1000, FAR - distance):
            error = (_score(rotary, q, k, start, start + distance) - near).abs().item()
            require(
                error < 1e-5,
                f"the score of positions {start} and {start + distance} differs by {error:.1e} "
                f"from that of 0 and {distance}, so it depends on more than the distance",
            )


def odd_channel_unchanged(part: type[Rotary]) -> None:
    """The last of an odd number of channels passes unchanged."""
    x = torch.randn(2, 3, 9, 7)
    y = _build(part, 7)(x)
    require(y.shape == x.shape, f"turns {tuple(x.shape)} into {tuple(y.shape)}")
    last, expected = require_finite(y[..., 6], x[..., 6])
    require(torch.equal(last, expected), "changes the last of 7 channels, which has no partner")


def head_dim_works_or_is_refused(part: type[Rotary]) -> None:
    """Every number of channels works, or is refused by an error that names it."""
    # one channel, numbers that groups of channels do not divide, and the most common one
    for head_dim in (*range(1, 9), 64):
        x = torch.randn(2, 1, 3, head_dim)
        try:
            y = _build(part, head_dim)(x, 5)
        except ValueError as error:
            require(
                f"head_dim={head_dim}" in str(error),
                f"refuses head_dim={head_dim} by an error that does not name it: {error}",
            )
        else:
            require_finite(y)
            require(y.shape == x.shape, f"turns {head_dim} channels into {tuple(y.shape)}")


def views(part: type[Rotary]) -> None:
    """A view with odd strides is rotated like a contiguous tensor."""
    rotary = _build(part)
    # heads that are split off one tensor of channels, as in a block, from an odd offset on
    heads = torch.randn(2, 9, 3 * HEAD_DIM + 1)[..., 1:].unflatten(-1, (3, -1))
    x = heads.transpose(1, 2)
    of_view, of_copy = require_finite(rotary(x), rotary(x.contiguous()))
    require(
        torch.allclose(of_view, of_copy, atol=1e-6),
        "a view of heads is not rotated as a contiguous tensor",
    )


def input_unchanged(part: type[Rotary]) -> None:
    """The input is not changed in place."""
    rotary = _build(part)
    x = torch.randn(2, 3, 9, HEAD_DIM)
    copy = x.clone()
    rotary(x, 3)
    require(torch.equal(x, copy), "changes its input in place")


def half_precision(part: type[Rotary]) -> None:
    """All dtypes are supported and exact to their precision at far positions."""
    # the same parameters in all dtypes, compared with float32
    rotary = _build(part)
    x = torch.randn(2, 3, 9, HEAD_DIM)
    for dtype, tolerance in ((torch.bfloat16, 1e-2), (torch.float16, 2e-3), (torch.float64, 1e-6)):
        y = rotary(x.to(dtype), FAR)
        require(y.dtype == dtype, f"turns {dtype} into {y.dtype}")
        y, expected = require_finite(y.float(), rotary(x, FAR))
        error = ((y - expected).norm() / x.norm()).item()
        require(
            error < tolerance, f"in {dtype} it is off by {error:.1e}, more than {tolerance:.0e}"
        )


def every_gradient(part: type[Rotary]) -> None:
    """The input and every parameter get a gradient."""
    rotary = _build(part)
    x = torch.randn(2, 3, 9, HEAD_DIM, requires_grad=True)
    # not the squared norm, which rotations leave unchanged
    (rotary(x) * torch.randn(2, 3, 9, HEAD_DIM)).sum().backward()
    gradient = x.grad
    require(
        gradient is not None and gradient.isfinite().all() and gradient.any(),
        "x gets no finite gradient",
    )
    for name, p in rotary.named_parameters():
        require(p.grad is not None and p.grad.any(), f"parameter {name} gets no gradient")


def autocast(part: type[Rotary]) -> None:
    """Autocast to bfloat16 does not lower the precision."""
    rotary = _build(part)
    x = torch.randn(2, 3, 9, HEAD_DIM)
    with torch.autocast("cpu", torch.bfloat16):
        y = rotary(x, FAR)
    require(y.dtype == x.dtype, f"under autocast to bfloat16 it turns {x.dtype} into {y.dtype}")
    y, expected = require_finite(y, rotary(x, FAR))
    error = ((y - expected).norm() / x.norm()).item()
    require(error < 1e-5, f"under autocast to bfloat16 it is off by {error:.1e}, more than 1e-05")


def compiles(part: type[Rotary]) -> None:
    """It compiles without a graph break, together with one for heads of another size."""
    narrow = _build(part)
    wide = _build(part, 2 * HEAD_DIM)
    x = torch.randn(2, 3, 9, HEAD_DIM, requires_grad=True)
    wide_x = torch.randn(2, 3, 9, 2 * HEAD_DIM)
    # all parts share their code, and with it the limit on its recompilations
    torch.compiler.reset()
    with without_shape_hook():
        compiled = torch.compile(
            lambda x, wide_x: (narrow(x, 5), wide(wide_x, 5)), backend="aot_eager", fullgraph=True
        )
        y, wide_y = compiled(x, wide_x)
        # the backward pass is traced too
        y.square().sum().backward()
        expected = narrow(x, 5)
        wide_expected = wide(wide_x, 5)
    require_finite(y, wide_y, expected, wide_expected)
    same = torch.allclose(y, expected, atol=1e-6)
    wide_same = torch.allclose(wide_y, wide_expected, atol=1e-6)
    require(same and wide_same, "the output changes when it is compiled")


def _build(part: type[Rotary], head_dim: int = HEAD_DIM) -> Rotary:
    """Builds a rotary whose parameters are not the initial ones."""
    # initial parameters can be a special case, such as the identity
    rotary = build_for_test(part, head_dim=head_dim)
    with torch.no_grad():
        for p in rotary.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return rotary.eval()


def _score(rotary: Rotary, q: Tensor, k: Tensor, t: int, s: int) -> Tensor:
    """Returns the score of a query at position t and a key at position s."""
    (score,) = require_finite((rotary(q, t) * rotary(k, s)).sum())
    return score


CONTRACT: tuple[Contract, ...] = (
    norm_unchanged,
    starts_at_identity,
    offset_continues,
    depends_on_distance_alone,
    odd_channel_unchanged,
    head_dim_works_or_is_refused,
    views,
    input_unchanged,
    half_precision,
    every_gradient,
    autocast,
    compiles,
)
ESSENTIAL: tuple[Contract, ...] = (
    offset_continues,
    input_unchanged,
    every_gradient,
)
