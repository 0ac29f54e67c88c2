"""Attention blocks to test."""

import torch
from torch import nn

from famx.attention.base import Block
from famx.contracts.attention import D, H
from famx.registry import build

# settings with which the short sequences of the tests reach every branch
SMALL = {
    "grouped_query": {"key_heads": 1},
    "sliding_window": {"windows": (1, 3)},
    "adaptive_span": {"max_span": 3, "ramp": 2, "cost": 0.1},
    "topk": {"keys": 2},
    "taylor": {"order": 6},
    "focus": {"steps": 4, "threshold": 0.3},
}


def build_block(name, causal=False, *, n_heads=H, rotary="rope", **options) -> Block:
    return build(
        "attention",
        {"name": name, **options},
        d_model=D,
        n_heads=n_heads,
        rotary=build("rotary", {"name": rotary}, head_dim=D // n_heads),
        causal=causal,
    )


def add_noise(module: nn.Module, amount: float) -> None:
    with torch.no_grad():
        for p in module.parameters():
            p += amount * torch.randn_like(p)


def plain_copy(block: Block) -> Block:
    """Returns plain attention with the weights of a block."""
    plain = build_block("multihead", block.causal)
    weights = block.state_dict()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    return plain


def torch_copy(block: Block) -> nn.MultiheadAttention:
    """Returns torch's attention with the weights of a multihead block."""
    copied = nn.MultiheadAttention(D, H, batch_first=True)
    copied.in_proj_weight.data = torch.cat((block.query.weight, block.key_value.weight)).detach()
    copied.in_proj_bias.data = torch.cat((block.query.bias, block.key_value.bias)).detach()
    copied.out_proj.load_state_dict(block.out.state_dict())
    return copied


def example_masks(b: int, h: int, t: int, s: int):
    """Returns None, a padding mask, and a mask that differs by head and query."""
    padding = torch.arange(s) < torch.tensor([s, 1 + s // 2])[:, None, None, None]
    return None, padding, torch.rand(b, h, t, s) < 0.7
