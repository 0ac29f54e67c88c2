"""Blocks that are called as torch calls its own attention."""

import pytest
import torch
from attention_blocks import build_block, torch_copy
from torch import nn
from torch.testing import assert_close

from famx.attention import as_torch_mha, connect_torch_layers
from famx.contracts.attention import D, H
from famx.registry import PARTS, names

CONNECTED = [name for name in names("attention") if PARTS["attention"][name].connects_layers]
X = (2, 5, D)
FUTURE = torch.ones(5, 7, dtype=torch.bool).triu(1)
PADDING = torch.arange(7) >= torch.tensor([7, 4])[:, None]


@pytest.fixture
def pair():
    """Returns a wrapped block, and torch's attention with the same weights."""
    block = build_block("multihead", rotary="none")
    return as_torch_mha(block), torch_copy(block)


def test_wrapped_block_has_no_more_parameters():
    block = build_block("multihead")
    assert len(list(as_torch_mha(block).parameters())) == len(list(block.parameters()))


def float_mask():
    return torch.zeros(5, 7).masked_fill(FUTURE, -torch.inf)


def large_negative_mask():
    return float_mask().clamp(min=-1e9)


def mask_by_head():
    return (torch.rand(2 * H, 5, 7) < 0.5) & (torch.arange(7) > 0)


@pytest.mark.parametrize(
    "mask", [lambda: None, lambda: FUTURE, float_mask, large_negative_mask, mask_by_head]
)
def test_masks_act_as_in_torch(pair, mask):
    wrapped, reference = pair
    x = torch.randn(X)
    attn_mask = mask()
    for key in (x, torch.randn(2, 7, D)):
        cropped = None if attn_mask is None else attn_mask[..., : key.shape[1]]
        arguments = {"attn_mask": cropped, "need_weights": False}
        y, weights = wrapped(x, key, key, **arguments)
        assert weights is None
        assert_close(y, reference(x, key, key, **arguments)[0])


def test_padding_and_mask_combine_as_in_torch(pair):
    wrapped, reference = pair
    x = torch.randn(X)
    memory = torch.randn(2, 7, D)
    masks = {"key_padding_mask": PADDING, "attn_mask": FUTURE}
    y, _ = wrapped(x, memory, memory, **masks)
    assert_close(y, reference(x, memory, memory, **masks)[0])


def test_one_sequence_needs_no_batch_axis(pair):
    wrapped, reference = pair
    x = torch.randn(5, D)
    for key in (x, torch.randn(7, D)):
        n = len(key)
        masks = {"key_padding_mask": PADDING[1, :n], "attn_mask": FUTURE[:, :n]}
        assert_close(wrapped(x, key, key, **masks)[0], reference(x, key, key, **masks)[0])


def test_is_causal_is_accepted_with_the_mask(pair):
    wrapped, reference = pair
    x = torch.randn(X)
    y, _ = wrapped(x, x, x, attn_mask=FUTURE[:, :5], is_causal=True)
    assert_close(y, reference(x, x, x, attn_mask=FUTURE[:, :5])[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"value": torch.randn(X)}, "value is not key"),
        ({"attn_mask": torch.ones(5, 5)}, "0 and -inf"),
        ({"attn_mask": torch.full((5, 5), -9.0)}, "0 and -inf"),
        ({"attn_mask": torch.full((5, 5), torch.nan)}, "0 and -inf"),
        ({"is_causal": True}, "needs an attn_mask"),
        (
            {"attn_mask": torch.zeros(2, 5, 5)},
            r"attn_mask has shape \(2, 5, 5\), expected \(5, 5\) or \(8, 5, 5\)",
        ),
        (
            {"key_padding_mask": torch.zeros(2, 4)},
            r"key_padding_mask has shape \(2, 4\), expected \(2, 5\)",
        ),
    ],
)
def test_arguments_that_a_block_cannot_serve_are_refused(arguments, message):
    x = torch.randn(X)
    wrapped = as_torch_mha(build_block("multihead"))
    with pytest.raises(ValueError, match=message):
        wrapped(**{"query": x, "key": x, "value": x, **arguments})


def test_a_module_that_is_no_block_is_refused():
    with pytest.raises(TypeError, match="Linear is not an attention block"):
        as_torch_mha(nn.Linear(3, 3))


@pytest.mark.parametrize("name", CONNECTED)
def test_connected_blocks_are_refused_where_torch_does_not_pass_their_messages(name):
    x = torch.randn(X)
    wrapped = as_torch_mha(build_block(name))
    with pytest.raises(ValueError, match="connect_torch_layers"):
        wrapped(x, x, x)


@pytest.mark.parametrize("name", CONNECTED)
def test_connected_blocks_exchange_messages_in_an_encoder_of_torch(name):
    layer = nn.TransformerEncoderLayer(D, H, 2 * D, dropout=0.0, batch_first=True)
    layer.self_attn = as_torch_mha(build_block(name))
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    for p in encoder.parameters():
        nn.init.normal_(p)
    connect_torch_layers(encoder)
    # so many samples that gates differ between them
    x = torch.randn(64, 5, D)
    y = encoder(x)
    y.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    # each layer as a stack of its own has no messages
    alone = x
    for layer in encoder.layers:
        alone = connect_torch_layers(layer)(alone)
    assert not torch.allclose(y, alone, atol=1e-3)


def test_torch_encoders_and_decoders_accept_blocks():
    encoder_layer = nn.TransformerEncoderLayer(D, H, 2 * D, batch_first=True)
    encoder_layer.self_attn = as_torch_mha(build_block("multihead"))
    decoder_layer = nn.TransformerDecoderLayer(D, H, 2 * D, batch_first=True)
    decoder_layer.self_attn = as_torch_mha(build_block("multihead", causal=True))
    decoder_layer.multihead_attn = as_torch_mha(build_block("multihead"))
    encoder = nn.TransformerEncoder(encoder_layer, 2, enable_nested_tensor=False).eval()
    decoder = nn.TransformerDecoder(decoder_layer, 2).eval()
    memory = encoder(torch.randn(2, 7, D))
    assert decoder(torch.randn(X), memory).shape == X
