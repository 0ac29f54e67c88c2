"""Positions pull at each other by a force in a shared space, and along paths of up to three edges (seed.md)."""

import math

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from famx.attention.base import Block, distances
from famx.nn.masks import visible
from famx.nn.state import append_to_cache
from famx.registry import register

REACH = 8.0  # of u: beyond it an edge is 1 or 0 but for 3e-4
TERMS = 32  # with which a sigmoid on [-REACH, REACH] is a polynomial of tanh(u / REACH) to 1e-6


@register
class RelativeForceAttention(Block):
    """`softmax((g force + (1 - g) topology) / temperature) v`, with a learned balance `g = sigmoid(balance)`.

    Emitters `e = R W_e x` and receivers `r = R W_r memory` are points of one space of `D = d_model` axes, in which each
    head has a direction d: `force(i, j) = <e_i - r_j, d> exp(-rho / sqrt(D)) / rho`, with
    `rho^2 = |e_i - r_j|^2 + softness^2 D`.

    Edges are `A(i, j) = sigmoid(u_i + v_j)`, u linear in x (cut at +-8), v in memory, 0 where i may not attend. With
    `P(i, j) = A(i, j) / n_i`, for the n_i keys that i may see, `topology = sum_k softmax(hops)_k n_i P^k`: how much
    likelier than by chance k edges lead from i to j. More than one edge only where queries and keys are one sequence.

    Args:
        hop_levels: edges of the longest path, at least 1.
        softness: radius under which a force fades out, in units of sqrt(d_model), above 0.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        rotary: nn.Module,
        causal: bool = False,
        *,
        hop_levels: int = 3,
        softness: float = 0.1,
    ):
        super().__init__(d_model, n_heads, rotary, causal)
        if hop_levels < 1 or softness <= 0:
            raise ValueError(
                f"hop_levels={hop_levels} must be at least 1, softness={softness} above 0"
            )
        self.softness = softness
        self.emitter = nn.Linear(d_model, d_model)
        self.receiver_value = nn.Linear(d_model, 2 * d_model)
        self.directions = nn.Parameter(torch.randn(n_heads, d_model))
        self.edge_from, self.edge_to = (
            nn.Linear(d_model, n_heads),
            nn.Linear(d_model, n_heads, bias=False),
        )
        self.hops = nn.Parameter(torch.zeros(hop_levels))
        self.balance = nn.Parameter(torch.tensor(0.5))
        self.log_temperature = nn.Parameter(torch.zeros(n_heads, 1, 1))
        self.out = nn.Linear(d_model, d_model)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"] | None = None,
        mask: Bool[Tensor, "#b #h #t s"] | None = None,
        state: dict | None = None,
    ) -> Float[Tensor, "b t d"]:
        """See `Attention.forward`."""
        cache, offset = self.cache(state, x.shape[1])
        if memory is None:
            append_to_cache(cache, **self.received(x, offset))
        elif "receiver" not in cache:
            cache |= self.received(memory)
        causal, value = self.causal and memory is None, cache["value"]
        seen = visible(mask, x.shape[1], value.shape[-2], causal, x.device)
        revisited = memory is None and (self.causal or (state is not None and "whole" not in state))
        pulls = self.pulls(
            x, offset, cache, seen, len(self.hops) if memory is None else 1, revisited
        )
        y, weights = _Mixed.apply(value, seen, self.softness, *pulls)
        if self.observed and memory is None:
            last = weights[-1].float() if seen is None else weights[-1].float() * seen[-1]
            self.metrics |= distances(
                lambda places: last @ places, mask, *weights.shape[-2:], x.device
            )
        if seen is not None:
            y = y * seen.any(-1, keepdim=True)
        return self.out(rearrange(y, "b h t k -> b t (h k)"))

    def pulls(
        self,
        x: Float[Tensor, "b t d"],
        offset: int,
        cache: dict,
        seen: Bool[Tensor, "#b #h #t s"] | None,
        levels: int,
        revisited: bool,
    ) -> tuple[Float[Tensor, "..."] | None, ...]:
        """What `_Mixed` makes the scores of. `revisited`: rows see different keys, or later chunks follow."""
        wide = torch.promote_types(x.dtype, torch.float32)
        balance, sharpness = self.balance.to(wide).sigmoid(), (-self.log_temperature.to(wide)).exp()
        shares = (
            self.hops[:levels].to(wide).softmax(0)[:, None, None, None] * (1 - balance) * sharpness
        )
        leaving, arriving = _by_head(self.edge_from(x)).clamp(-REACH, REACH), cache["edge_to"]
        longer = None, None
        if levels > 1 and (revisited or (seen is not None and seen.shape[-2] > 1)):
            longer = _paths(leaving, arriving, seen, shares[1:], cache)
        elif levels > 1:
            longer = _smooth_paths(leaving, arriving, seen, shares[1:])
        # sigmoid(u + v) = e^u / (e^u + e^-v), without an exponential for each pair
        u, v = leaving.exp(), arriving.clamp(-80, 80).neg().exp()
        emitter, receiver = (
            self.turned(self.emitter(x), offset).to(wide),
            cache["receiver"].to(wide),
        )
        centre = receiver.mean(1, keepdim=True).detach()
        e, r = ((points - centre) / math.sqrt(x.shape[-1]) for points in (emitter, receiver))
        if self.observed:
            hops, temperature = self.hops.detach().softmax(0), 1 / sharpness.detach().flatten()
            self.metrics = {"balance": balance.detach(), "hops": hops, "temperature": temperature}
        return shares[0] * u, u, v, e, r, (balance * sharpness)[..., 0] * self.directions, *longer

    def received(self, x: Float[Tensor, "b s d"], offset: int = 0) -> dict[str, Tensor]:
        """What a key is: a point, a value, and how easily edges lead to it."""
        receiver, value = self.receiver_value(x).chunk(2, dim=-1)
        turned = self.turned(receiver, offset)
        return {
            "receiver": turned,
            "value": self.heads(value),
            "edge_to": _by_head(self.edge_to(x)),
        }

    def turned(self, points: Float[Tensor, "b s d"], offset: int) -> Float[Tensor, "b s d"]:
        return rearrange(self.rotary(self.heads(points), offset), "b h s k -> b s (h k)")


class _Mixed(torch.autograd.Function):
    """`softmax(share_i / (u_i + v_j) + <e_i - r_j, d> exp(-rho) / rho + <row_i, column_j>) value`, d of each head.

    `rho^2 = |e_i - r_j|^2 + softness^2`. The squared distances are one product of matrices. It cancels where two points
    nearly coincide, so it is done in double precision (single where a device has no other); the gradients cancel no
    more than the points themselves. Few buffers of the weights' size are made, for a new one costs more than what is
    done in it. Gives the weights too, without a gradient.
    """

    @staticmethod
    def forward(
        ctx,
        value: Float[Tensor, "b h s k"],
        seen: Bool[Tensor, "#b #h #t s"] | None,
        softness: float,
        share: Float[Tensor, "b h t 1"],
        u: Float[Tensor, "b h t 1"],
        v: Float[Tensor, "b h s 1"],
        e: Float[Tensor, "b t d"],
        r: Float[Tensor, "b s d"],
        directions: Float[Tensor, "h d"],
        rows: Float[Tensor, "b h t r"] | None,
        columns: Float[Tensor, "b h s r"] | None,
    ) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "b h t s"]]:
        exact = torch.float32 if e.device.type == "mps" else torch.float64
        wide_e, wide_r, wide_d = (x.to(exact) for x in (e, r, directions))
        lengths = (
            wide_e.square().sum(-1)[:, :, None] + (wide_r.square().sum(-1) + softness**2)[:, None]
        )
        rho = (
            lengths.baddbmm_(wide_e, wide_r.mT, alpha=-2)
            .to(e)
            .clamp_(min=softness**2)
            .sqrt_()[:, None]
        )
        fade = rho.neg().exp_().div_(rho)
        along, against = (_by_head((points @ wide_d.T).to(e)) for points in (wide_e, wide_r))
        scores = (u + v.mT).contiguous()
        # along and against one after the other, for their difference would be one more tensor of the scores' size
        torch.div(share, scores, out=scores).addcmul_(along, fade).addcmul_(
            against.mT, fade, value=-1
        )
        if rows is not None:
            scores.flatten(0, 1).baddbmm_(rows.flatten(0, 1), columns.flatten(0, 1).mT)
        if seen is not None:
            scores.masked_fill_(~seen, torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores, -1, out=scores)
        y = weights.to(value) @ value
        ctx.save_for_backward(
            value,
            share,
            u,
            v,
            e,
            r,
            directions,
            rows,
            columns,
            rho,
            fade,
            along,
            against,
            weights,
            y,
        )
        ctx.mark_non_differentiable(weights)
        ctx.set_materialize_grads(False)
        return y, weights

    @staticmethod
    @once_differentiable
    def backward(ctx, of_y: Float[Tensor, "b h t k"], _: None) -> tuple[Tensor | None, ...]:
        (
            value,
            share,
            u,
            v,
            e,
            r,
            directions,
            rows,
            columns,
            rho,
            fade,
            along,
            against,
            weights,
            y,
        ) = ctx.saved_tensors
        of_value = weights.to(of_y).mT @ of_y
        grad = (
            (of_y @ value.mT)
            .to(weights)
            .sub_((of_y.to(weights) * y).sum(-1, keepdim=True))
            .mul_(weights)
        )
        buffer = grad * fade
        of_along, of_against = buffer.sum(-1), buffer.sum(-2)
        of_fade = torch.sub(along, against.mT, out=buffer).mul_(grad).sum(1, keepdim=True)
        near = of_fade.mul_(fade).mul_((1 + 1 / rho).div_(rho))[:, 0]  # of -|e_i - r_j|^2 / 2
        of_e = torch.baddbmm(of_along.mT @ directions, near, r).addcmul_(
            near.sum(-1)[..., None], e, value=-1
        )
        of_r = torch.baddbmm(of_against.mT @ -directions, near.mT, e).addcmul_(
            near.sum(-2)[..., None], r, value=-1
        )
        of_directions = (of_along @ e - of_against @ r).sum(0)
        of_product = (None, None) if rows is None else (grad @ columns, grad.mT @ rows)
        total = torch.add(u, v.mT, out=buffer)
        of_share = grad.div_(total).sum(-1, keepdim=True)
        less = grad.div_(total).mul_(share)
        of_ratio = of_share, -less.sum(-1, keepdim=True), -less.sum(-2)[..., None]
        return of_value, None, None, *of_ratio, of_e, of_r, of_directions, *of_product


def _paths(
    edge_from: Float[Tensor, "b h t 1"],
    edge_to: Float[Tensor, "b h s 1"],
    seen: Bool[Tensor, "#b #h #t s"] | None,
    shares: Float[Tensor, "levels h 1 1"],
    cache: dict,
) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "b h s k"]]:
    """`F, G` with `F G^T = sum_k shares_k n P^(k + 1)`; the steps P of earlier chunks are remembered."""
    edges = (edge_from + edge_to.mT).sigmoid_()
    if seen is not None:
        edges = edges * seen
    steps = edges / _count(seen, edges.shape[-1])
    if "steps" in cache:
        before = nn.functional.pad(cache["steps"], (0, edges.shape[-2]))
        steps = torch.cat((before, steps), dim=-2)
    cache["steps"] = steps
    return _horner(shares, edges, steps).to(edge_from), steps.mT


def _smooth_paths(
    edge_from: Float[Tensor, "b h t 1"],
    edge_to: Float[Tensor, "b h s 1"],
    seen: Bool[Tensor, "#b #h 1 s"] | None,
    shares: Float[Tensor, "levels h 1 1"],
) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "b h s k"]]:
    """The same where all rows see the same keys, of few columns, to 1e-6.

    On `[-REACH, REACH]` the sigmoid is a sum of few Chebyshev polynomials of `tanh(u / REACH) / tanh(1)`, which takes
    its poles farther away: `A = F G^T`, so `A P = F (G^T F / n) G^T`.
    """
    order = torch.arange(TERMS, device=edge_from.device, dtype=edge_from.dtype)
    angles = (order + 0.5) * (math.pi / TERMS)
    # within 1e-6 of the ends the angle's slope would be infinite
    rows = (
        ((edge_from / REACH).tanh() / math.tanh(1)).clamp(-1 + 1e-6, 1 - 1e-6).acos() * order
    ).cos()
    transform = (angles[:, None] * order).cos() * torch.where(order == 0, 1.0, 2.0) / TERMS
    columns = (edge_to + REACH * (angles.cos() * math.tanh(1)).atanh()).sigmoid() @ transform
    if seen is not None:
        columns = columns * seen.mT
    steps = columns.mT @ (rows / _count(seen, columns.shape[-2]))
    return (rows @ _horner(shares, steps, steps)).to(edge_from), columns.to(edge_from)


def _horner(
    shares: Float[Tensor, "levels h 1 1"],
    rows: Float[Tensor, "b h t r"],
    steps: Float[Tensor, "b h r r"],
) -> Float[Tensor, "b h t r"]:
    """`rows (shares_1 + shares_2 steps + shares_3 steps^2 ...)`."""
    *shorter, total = (share * rows for share in shares)
    for path in reversed(shorter):
        total = path + total @ steps
    return total


def _count(seen: Bool[Tensor, "#b #h #t s"] | None, keys: int) -> Float[Tensor, "#b #h #t 1"] | int:
    return keys if seen is None else seen.sum(-1, keepdim=True).clamp(min=1).float()


def _by_head(x: Float[Tensor, "b s h"]) -> Float[Tensor, "b h s 1"]:
    # contiguous, for every tensor of (b h t s) takes its memory order from such vectors
    return rearrange(
        x.to(torch.promote_types(x.dtype, torch.float32)), "b s h -> b h s 1"
    ).contiguous()
