"""The relative-force block pair by pair: every difference of two points, (b t s d), in memory."""

import math

import torch


def forward_pairs(block, x, memory=None, mask=None):
    """Returns the output for whole sequences. `mask` is (b, 1 or heads, 1 or time, keys)."""
    source = x if memory is None else memory
    t = x.shape[1]
    s = source.shape[1]
    pair_mask = torch.ones(len(x), block.n_heads, t, s, dtype=torch.bool)
    if mask is not None:
        pair_mask = mask.expand(-1, block.n_heads, t, -1)
    if block.causal and memory is None:
        pair_mask = pair_mask & (torch.arange(t)[:, None] >= torch.arange(s))

    receiver, value = block.receiver_value(source).split(block.d_model, dim=-1)
    force = forces(block, rotate(block, block.emitter(x)), rotate(block, receiver))
    levels = block.hops if memory is None else block.hops[:1]
    topology = paths(edges(block, x, source) * pair_mask, pair_mask, levels)

    balance = block.balance.sigmoid()
    scores = (balance * force + (1 - balance) * topology) / block.log_temperature.exp()
    weights = scores.masked_fill(~pair_mask, -1e30).softmax(-1) * pair_mask
    return block.out((weights @ split_heads(block, value)).transpose(1, 2).flatten(2))


def split_heads(block, x):
    return x.view(*x.shape[:2], block.n_heads, -1).transpose(1, 2)


def rotate(block, points):
    return block.rotary(split_heads(block, points)).transpose(1, 2).flatten(2)


def forces(block, emitter, receiver):
    d_model = block.d_model
    differences = emitter[:, :, None] - receiver[:, None]
    distances = (differences.square().sum(-1, keepdim=True) + block.softness**2 * d_model).sqrt()
    directed = torch.einsum("btsd,hd->bhts", differences / distances, block.directions)
    return directed * (-distances[..., 0] / math.sqrt(d_model)).exp()[:, None]


def edges(block, x, source):
    edge_from = block.edge_from(x).clamp(-8, 8)[:, :, None]
    edge_to = block.edge_to(source)[:, None]
    return (edge_from + edge_to).sigmoid().permute(0, 3, 1, 2)


def paths(edges, mask, levels):
    """Returns `sum_k softmax(levels)_k n P^k` by powers of the steps P."""
    visible_keys = mask.sum(-1, keepdim=True).clamp(min=1)
    steps = edges / visible_keys
    total = torch.zeros_like(edges)
    power = None
    for share in levels.softmax(0):
        power = steps if power is None else power @ steps
        total = total + share * visible_keys * power
    return total
