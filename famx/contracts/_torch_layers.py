"""Contracts of attention blocks inside torch's own layers."""

import torch
from torch import Tensor, nn

from famx.attention import as_torch_mha, connect_torch_layers
from famx.attention.base import Block
from famx.contracts import require
from famx.contracts._blocks import B, D, H, S, T, build_block, is_close
from famx.nn.hooks import connect_layers
from famx.nn.state import DecodeState


def works_in_torch_layers(part: type[Block]) -> None:
    """The block gives the same output inside torch's encoder layer as by itself."""
    block = build_block(part)
    x = torch.randn(B, T, D)
    padding = torch.arange(T) >= torch.tensor([T, S])[:, None]
    for batch_first in (True, False):
        layer = nn.TransformerEncoderLayer(D, H, 2 * D, dropout=0.0, batch_first=batch_first).eval()
        layer.add_module("self_attn", as_torch_mha(block, batch_first))
        connect_torch_layers(layer)
        # the layer by hand; torch masks where padding is True, famx where it is False
        normed = layer.norm1(x + block(x, mask=~padding[:, None, None]))
        expected = layer.norm2(normed + layer.linear2(layer.linear1(normed).relu()))
        if batch_first:
            y = layer(x, src_key_padding_mask=padding)
        else:
            y = layer(x.transpose(0, 1), src_key_padding_mask=padding).transpose(0, 1)
        require(is_close(y, expected), "inside torch's encoder layer, its output differs")


def works_in_torch_decoders(part: type[Block]) -> None:
    """A decoder of torch, with the block for both attentions, connects its layers as famx does."""
    layers = []
    blocks = nn.ModuleList()
    for _ in range(2):
        layer = nn.TransformerDecoderLayer(D, H, 2 * D, dropout=0.0, batch_first=True)
        for name in ("self_attn", "multihead_attn"):
            block = build_block(part, causal=name == "self_attn")
            blocks.append(block)
            layer.add_module(name, as_torch_mha(block))
        layers.append(layer)
    decoder = nn.TransformerDecoder(layers[0], 2)
    # the decoder copies its first layer
    decoder.layers = nn.ModuleList(layers)
    connect_torch_layers(decoder.eval())
    connect_layers(blocks)
    x = torch.randn(B, T, D)
    memory = torch.randn(B, S, D)
    padding = torch.arange(S) >= torch.tensor([S, S - 2])[:, None]

    # the decoder by hand
    def by_hand(y: Tensor) -> Tensor:
        state = DecodeState(incremental=False)
        for i, layer in enumerate(layers):
            y = layer.norm1(y + blocks[2 * i](y, state=state))
            y = layer.norm2(y + blocks[2 * i + 1](y, memory, ~padding[:, None, None], state))
            y = layer.norm3(y + layer.linear2(layer.linear1(y).relu()))
        return y

    # twice, since nothing of a pass may remain
    for _ in range(2):
        y = decoder(x, memory, memory_key_padding_mask=padding)
        require(is_close(y, by_hand(x)), "inside torch's decoder, its output differs")
