"""Positions pull at each other by a force in a shared space, and along paths of up to three edges (seed.md)."""

import math

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from famx.attention.base import Block, extend, visible
from famx.registry import register


@register
class RelativeForceAttention(Block):
    """`softmax((g force + (1 - g) topology) / temperature) v`, with a learned balance `g = sigmoid(balance)`.

    Emitters `e = R W_e x` and receivers `r = R W_r memory` are points of one space of `D = d_model` axes, in which each
    head has a direction d: `force(i, j) = <e_i - r_j, d> exp(-rho / sqrt(D)) / rho`, with
    `rho^2 = |e_i - r_j|^2 + softness^2 D`.

    Edges are `A(i, j) = sigmoid(u_i + v_j)`, u linear in x and v in memory, 0 where i may not attend. With
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
            raise ValueError(f"hop_levels={hop_levels} must be at least 1, softness={softness} above 0")
        self.softness = softness
        self.emitter = nn.Linear(d_model, d_model)
        self.receiver_value = nn.Linear(d_model, 2 * d_model)
        self.directions = nn.Parameter(torch.randn(n_heads, d_model))
        self.edge_from, self.edge_to = nn.Linear(d_model, n_heads), nn.Linear(d_model, n_heads, bias=False)
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
            extend(cache, **self.received(x, offset))
        elif "receiver" not in cache:
            cache |= self.received(memory)
        receiver, value, edge_to = cache["receiver"], cache["value"], cache["edge_to"]
        t, s = x.shape[1], receiver.shape[1]
        seen = visible(mask, t, s, self.causal and memory is None, x.device)
        edges = (_by_head(self.edge_from(x)) + edge_to.mT).sigmoid_()
        if seen is not None:
            edges = edges * seen
        balance, sharpness = self.balance.float().sigmoid(), (-self.log_temperature.float()).exp()
        topology = edges if memory is not None or len(self.hops) == 1 else self.paths(edges, seen, cache)
        force, weight = self.force(self.turned(self.emitter(x), offset), receiver, balance * sharpness)
        scores = torch.addcmul(force * weight, topology, (1 - balance) * sharpness)
        if seen is not None:
            scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        y = scores.softmax(-1).to(value) @ value
        if seen is not None:
            y = y * seen.any(-1, keepdim=True)
        if self.observed:
            self.metrics = {
                "balance": balance.detach(),
                "hops": self.hops.detach().softmax(0),
                "temperature": 1 / sharpness.detach().flatten(),
            }
        return self.out(rearrange(y, "b h t k -> b t (h k)"))

    def received(self, x: Float[Tensor, "b s d"], offset: int = 0) -> dict[str, Tensor]:
        """What a key is: a point, a value, and how easily edges lead to it."""
        receiver, value = self.receiver_value(x).chunk(2, dim=-1)
        turned = self.turned(receiver, offset)
        return {"receiver": turned, "value": self.heads(value), "edge_to": _by_head(self.edge_to(x))}

    def turned(self, points: Float[Tensor, "b s d"], offset: int) -> Float[Tensor, "b s d"]:
        return rearrange(self.rotary(self.heads(points), offset), "b h s k -> b s (h k)")

    def force(
        self, emitter: Float[Tensor, "b t d"], receiver: Float[Tensor, "b s d"], gain: Float[Tensor, "h 1 1"]
    ) -> tuple[Float[Tensor, "b h t s"], Float[Tensor, "b 1 t s"]]:
        """`gain <e_i - r_j, d>` of each head, and what all heads multiply it with, `exp(-rho / sqrt(D)) / rho`.

        The squared distances are one product of matrices. It cancels where two points nearly coincide, so it is done in
        double precision (single where a device has no other), about the points' centre.
        """
        exact = torch.float32 if emitter.device.type == "mps" else torch.float64
        e, r = emitter.to(exact), receiver.to(exact)
        centre = r.mean(1, keepdim=True).detach()
        e, r = e - centre, r - centre
        lengths = e.square().sum(-1)[:, :, None] + r.square().sum(-1)[:, None]
        square = torch.baddbmm(lengths, e, r.mT, alpha=-2).float().clamp(min=0)
        scale = math.sqrt(e.shape[-1])
        rho = (square + (self.softness * scale) ** 2).sqrt()[:, None]
        along_e, along_r = (_by_head(points @ self.directions.to(exact).T) * gain for points in (e, r))
        return along_e - along_r.mT, (rho / -scale).exp() / rho

    def paths(
        self, edges: Float[Tensor, "b h t s"], seen: Bool[Tensor, "#b #h #t s"] | None, cache: dict
    ) -> Float[Tensor, "b h t s"]:
        """`sum_k softmax(hops)_k n P^k` by Horner's rule; the steps P of earlier chunks are remembered."""
        keys = edges.shape[-1] if seen is None else seen.sum(-1, keepdim=True).clamp(min=1)
        steps = edges / keys
        if "steps" in cache:
            before = nn.functional.pad(cache["steps"], (0, edges.shape[-2]))
            steps = torch.cat((before, steps), dim=-2)
        cache["steps"] = steps
        *shorter, total = (share * edges for share in self.hops.float().softmax(0))
        for path in reversed(shorter):
            total = path + total @ steps
        return total


def _by_head(x: Float[Tensor, "b s h"]) -> Float[Tensor, "b h s 1"]:
    # contiguous, for every tensor of (b h t s) takes its memory order from such vectors
    return rearrange(x.float(), "b s h -> b h s 1").contiguous()
