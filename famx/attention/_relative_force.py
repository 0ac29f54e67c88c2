"""Terms of the scores of the relative-force block: points, and paths of one or more edges."""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from famx.nn.state import Cache

REACH = 8.0  # largest |u|: beyond it an edge is 1 or 0 up to 3e-4
TERMS = 32  # of a polynomial of tanh(u / REACH), the sigmoid on [-REACH, REACH] up to 1e-6


class ScoreTerms(NamedTuple):
    """Terms of `share_i / (u_i + v_j) + <e_i - r_j, d> exp(-rho) / rho + <row_i, column_j>`.

    `rho^2 = |e_i - r_j|^2 + softness^2`. Rows and columns are None if there is no third term.
    """

    share: Float[Tensor, "b h t 1"]
    u: Float[Tensor, "b h t 1"]
    v: Float[Tensor, "b h s 1"]
    e: Float[Tensor, "b t d"]
    r: Float[Tensor, "b s d"]
    directions: Float[Tensor, "h d"]
    rows: Float[Tensor, "b h t r"] | None
    columns: Float[Tensor, "b h s r"] | None


def exact_paths(
    edge_from: Float[Tensor, "b h t 1"],
    edge_to: Float[Tensor, "b h s 1"],
    mask: Bool[Tensor, "#b #h #t s"] | None,
    shares: Float[Tensor, "levels h 1 1"],
    cache: Cache,
) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "b h s k"]]:
    """Returns `F, G` with `F G^T = sum_k shares_k n P^(k + 1)`.

    The steps P of earlier chunks are cached.
    """
    # steps P of this chunk, after those of earlier chunks
    edges = (edge_from + edge_to.mT).sigmoid_()
    if mask is not None:
        edges = edges * mask
    steps = edges / _visible_keys(mask, edges.shape[-1])
    if "steps" in cache:
        earlier_steps = pad(cache["steps"], (0, edges.shape[-2]))
        steps = torch.cat((earlier_steps, steps), dim=-2)
    cache["steps"] = steps
    return _weighted_powers(shares, edges, steps).to(edge_from), steps.mT


def low_rank_paths(
    edge_from: Float[Tensor, "b h t 1"],
    edge_to: Float[Tensor, "b h s 1"],
    mask: Bool[Tensor, "#b #h 1 s"] | None,
    shares: Float[Tensor, "levels h 1 1"],
) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "b h s k"]]:
    """Returns `exact_paths` up to 1e-6 with few columns, for queries that all have the same keys.

    On `[-REACH, REACH]` the sigmoid is a sum of few Chebyshev polynomials of
    `tanh(u / REACH) / tanh(1)`, a substitution that moves its poles farther away. So
    `A = F G^T` and `A P = F (G^T F / n) G^T`.
    """
    # F: the polynomials at u; within 1e-6 of the ends the slope of the angle would be infinite
    order = torch.arange(TERMS, device=edge_from.device, dtype=edge_from.dtype)
    points = ((edge_from / REACH).tanh() / math.tanh(1)).clamp(-1 + 1e-6, 1 - 1e-6)
    rows = (points.acos() * order).cos()

    # G: their coefficients, from the sigmoid at the Chebyshev nodes
    angles = (order + 0.5) * (math.pi / TERMS)
    transform = (angles[:, None] * order).cos() * torch.where(order == 0, 1.0, 2.0) / TERMS
    nodes = REACH * (angles.cos() * math.tanh(1)).atanh()
    columns = (edge_to + nodes).sigmoid() @ transform
    if mask is not None:
        columns = columns * mask.mT

    # powers of G^T F / n
    steps = columns.mT @ (rows / _visible_keys(mask, columns.shape[-2]))
    weighted_rows = rows @ _weighted_powers(shares, steps, steps)
    return weighted_rows.to(edge_from), columns.to(edge_from)


def by_head(x: Float[Tensor, "b s h"]) -> Float[Tensor, "b h s 1"]:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    # contiguous, since every tensor of (b h t s) gets its memory order from such vectors
    return rearrange(wide, "b s h -> b h s 1").contiguous()


def _weighted_powers(
    shares: Float[Tensor, "levels h 1 1"],
    rows: Float[Tensor, "b h t r"],
    steps: Float[Tensor, "b h r r"],
) -> Float[Tensor, "b h t r"]:
    """Returns `rows (shares_1 + shares_2 steps + shares_3 steps^2 ...)` by Horner's scheme."""
    *shorter, total = (share * rows for share in shares)
    for path in reversed(shorter):
        total = path + total @ steps
    return total


def _visible_keys(
    mask: Bool[Tensor, "#b #h #t s"] | None, keys: int
) -> Float[Tensor, "#b #h #t 1"] | int:
    """Returns how many keys each query may attend to, at least 1."""
    return keys if mask is None else mask.sum(-1, keepdim=True).clamp(min=1).float()
