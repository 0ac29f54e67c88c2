"""The relative-force block pair by pair: every difference of two points, (batch, time, time, width), lies in memory."""

import math

import torch


def paired(block, x, memory=None, mask=None):
    """What the block gives for whole sequences. `mask` is (batch, 1 or heads, 1 or time, keys)."""
    keys_from, d_model, n_heads = x if memory is None else memory, x.shape[-1], block.n_heads
    t, s, width = x.shape[1], keys_from.shape[1], d_model // n_heads
    seen = (
        torch.ones(x.shape[0], n_heads, t, s, dtype=torch.bool)
        if mask is None
        else mask.expand(-1, n_heads, t, -1)
    )
    if block.causal and memory is None:
        seen = seen & (torch.arange(t)[:, None] >= torch.arange(s))

    def turned(points):
        heads = points.view(*points.shape[:2], n_heads, width).transpose(1, 2)
        return block.rotary(heads).transpose(1, 2).flatten(2)

    receiver, value = block.receiver_value(keys_from).split(d_model, dim=-1)
    differences = turned(block.emitter(x))[:, :, None] - turned(receiver)[:, None]
    distances = (differences.square().sum(-1, keepdim=True) + block.softness**2 * d_model).sqrt()
    directed = torch.einsum("btsd,hd->bhts", differences / distances, block.directions)
    force = directed * (-distances[..., 0] / math.sqrt(d_model)).exp()[:, None]

    pairs = torch.cat(
        (x[:, :, None].expand(-1, -1, s, -1), keys_from[:, None].expand(-1, t, -1, -1)), -1
    )
    leaving, arriving = pairs.split(d_model, dim=-1)
    edges = (
        (block.edge_from(leaving).clamp(-8, 8) + block.edge_to(arriving))
        .sigmoid()
        .permute(0, 3, 1, 2)
    )
    edges = edges * seen
    seen_keys = seen.sum(-1, keepdim=True).clamp(min=1)
    steps = edges / seen_keys
    levels = block.hops if memory is None else block.hops[:1]
    topology, power = torch.zeros_like(edges), None
    for share in levels.softmax(0):
        power = steps if power is None else power @ steps
        topology = topology + share * seen_keys * power

    balance = block.balance.sigmoid()
    scores = (balance * force + (1 - balance) * topology) / block.log_temperature.exp()
    weights = scores.masked_fill(~seen, -1e30).softmax(-1) * seen
    mixed = weights @ value.view(*value.shape[:2], n_heads, width).transpose(1, 2)
    return block.out(mixed.transpose(1, 2).flatten(2))
