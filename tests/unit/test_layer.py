"""Layers and their dropout against their formulas."""

from functools import partial

import pytest
import torch
from attention_blocks import add_noise, build_block
from reference.conformer import convolve
from torch import nn
from torch.testing import assert_close

from famx.contracts.attention import D
from famx.layer.base import Dropout
from famx.nn.state import DecodeState
from famx.registry import build


def build_layer(name, causal=False, **options):
    """Builds a layer in double precision and evaluation mode, with noise on its weights."""
    layer = build(
        "layer",
        {"name": name, **options},
        d_model=D,
        causal=causal,
        attention=partial(build_block, "multihead", causal, rotary="none"),
        feedforward=partial(build, "feedforward", {"name": "gelu"}, d_model=D),
        norm=partial(build, "norm", {"name": "layernorm"}, d_model=D),
    )
    add_noise(layer, 0.3)
    return layer.double().eval()


def example(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def plain_copy(skip, causal=False):
    """Returns a pre-norm layer with the weights of a skip layer."""
    plain = build_layer("prenorm", causal)
    weights = skip.state_dict()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    return plain


def test_postnorm_is_its_formula():
    layer = build_layer("postnorm")
    x = example(2, 7, D)
    y = layer.attention_norm(x + layer.attention(x))
    assert_close(layer(x), layer.feedforward_norm(y + layer.feedforward(y)))


def test_sandwich_is_its_formula():
    layer = build_layer("sandwich")
    x = example(2, 7, D)
    y = x + layer.attention_output_norm(layer.attention(layer.attention_norm(x)))
    expected = y + layer.feedforward_output_norm(layer.feedforward(layer.feedforward_norm(y)))
    assert_close(layer(x), expected)


def test_parallel_is_its_formula():
    layer = build_layer("parallel")
    x = example(2, 7, D)
    y = layer.norm(x)
    assert_close(layer(x), x + layer.attention(y) + layer.feedforward(y))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel_size", [1, 3, 31])
@pytest.mark.parametrize("last_norm", [False, True])
def test_conformer_equals_a_convolution_tap_by_tap(causal, kernel_size, last_norm):
    layer = build_layer("conformer", causal, kernel_size=kernel_size, last_norm=last_norm)
    assert isinstance(layer.last_norm, nn.LayerNorm if last_norm else nn.Identity)
    x = example(2, 9, D)
    with torch.no_grad():
        for sample in x:
            y = sample + layer.first_feedforward(layer.first_norm(sample)) / 2
            y = y + layer.attention(layer.attention_norm(y)[None])[0]
            y = y + convolve(layer.convolution, layer.convolution_norm(y), causal)
            y = layer.last_norm(y + layer.second_feedforward(layer.second_norm(y)) / 2)
            assert_close(layer(sample[None])[0], y)


@pytest.mark.parametrize("causal", [False, True])
def test_conformer_gives_the_same_for_padding_as_a_mask_of_pairs(causal):
    layer = build_layer("conformer", causal, kernel_size=3)
    x = example(2, 9, D)
    padding = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    padding[1, ..., 6:] = False
    pairs = padding & torch.ones(9, 9, dtype=torch.bool)
    assert_close(layer(x, mask=pairs), layer(x, mask=padding))


def test_conformer_convolves_packed_sequences_separately():
    layer = build_layer("conformer", kernel_size=5)
    first = example(1, 4, D)
    second = example(1, 6, D)
    pairs = torch.block_diag(torch.ones(4, 4), torch.ones(6, 6)).bool()[None, None]
    packed = layer(torch.cat((first, second), 1), mask=pairs)
    assert_close(packed, torch.cat((layer(first), layer(second)), 1))


@pytest.mark.parametrize("name", ["conformer", "skip"])
def test_a_full_pass_caches_nothing(name):
    layer = build_layer(name, causal=True)
    state = DecodeState(incremental=False)
    x = example(2, 7, D)
    # with a cache, the second call would be a continuation of the first
    expected = layer(x)
    assert_close(layer(x, state=state), expected)
    assert_close(layer(x, state=state), expected)


def test_conformer_caches_only_what_its_kernel_reaches():
    layer = build_layer("conformer", causal=True, kernel_size=5)
    state = DecodeState()
    layer(example(2, 7, D), state=state)
    assert state.cache(layer.convolution)["inputs"].shape == (2, 4, D)


def test_conformer_refuses_an_even_kernel():
    with pytest.raises(ValueError, match="kernel_size=4 must be odd"):
        build_layer("conformer", kernel_size=4)


def set_gate(skip, logit):
    """Makes the gate of a skip layer the same everywhere."""
    with torch.no_grad():
        skip.gate[-1].weight.zero_()
        skip.gate[-1].bias.fill_(logit)


@pytest.mark.parametrize("causal", [False, True])
def test_skip_is_prenorm_with_an_open_gate_and_the_identity_with_a_closed_one(causal):
    skip = build_layer("skip", causal)
    x = example(2, 7, D)
    set_gate(skip, 9.0)
    assert_close(skip(x), plain_copy(skip, causal)(x))
    set_gate(skip, -9.0)
    assert torch.equal(skip(x), x)


@pytest.mark.parametrize("causal", [False, True])
def test_skip_decides_for_the_sample_or_if_causal_for_each_position(causal):
    skip = build_layer("skip", causal)
    x = example(16, 7, D)
    with torch.no_grad():
        skip.gate[-1].bias.zero_()
    skip.observed = True
    visited = (skip(x) != x).any(-1)
    assert 0 < visited.float().mean() < 1, "the example has no skipping"
    decided_as_one = visited.all(1) | ~visited.any(1)
    assert decided_as_one.all() != causal
    assert_close(skip.metrics["compute"], visited.double().mean())


def test_penalty_of_skip_is_that_of_the_positions_it_computes():
    skip = build_layer("skip", True, cost=2.0)
    x = example(2, 7, D)
    set_gate(skip, 9.0)
    skip(x)
    assert skip.penalty() is None
    skip.train()(x)
    assert_close(skip.penalty(), torch.tensor(2.0, dtype=torch.float64))
    assert skip.penalty() is None
    set_gate(skip, -9.0)
    skip(x)
    assert skip.penalty() == 0


def test_the_penalty_of_skip_closes_its_gate():
    skip = build_layer("skip", True, cost=2.0)
    set_gate(skip, 1.0)
    skip.train()(example(2, 7, D))
    skip.penalty().backward()
    assert skip.gate[-1].bias.grad > 0


def test_the_task_opens_the_gate_of_a_skipped_layer_that_is_needed():
    skip = build_layer("skip")
    x = example(8, 7, D)
    with torch.no_grad():
        target = plain_copy(skip)(x)
    set_gate(skip, -0.1)
    assert torch.equal(skip(x), x)
    nn.functional.mse_loss(skip(x), target).backward()
    assert skip.gate[-1].bias.grad < 0


def test_dropout_drops_the_right_share_and_leaves_the_mean():
    y = Dropout(0.1)(torch.ones(1_000_003))
    p = 26 / 256
    scaled = y.max().item()
    assert_close(scaled, 1 / (1 - p))
    assert set(y.unique().tolist()) == {0.0, scaled}
    # each eighth too, since one random word serves eight elements
    for part in (y, *(y[i::8] for i in range(8))):
        standard_error = (p * (1 - p) / len(part)) ** 0.5
        assert abs((part == 0).float().mean() - p) < 5 * standard_error


def test_dropout_is_the_identity_in_evaluation_and_at_zero():
    x = torch.randn(3, 5)
    random_state = torch.get_rng_state()
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert torch.equal(random_state, torch.get_rng_state())


def test_dropout_depends_on_the_seed_alone_and_drops_the_same_gradients():
    x = torch.randn(3, 5, 7, requires_grad=True)
    torch.manual_seed(3)
    y = Dropout(0.5)(x)
    torch.manual_seed(3)
    assert torch.equal(y, Dropout(0.5)(x))
    y.sum().backward()
    assert_close(x.grad, 2.0 * (y != 0))


def test_dropout_does_not_change_the_dtype():
    assert Dropout(0.5)(torch.ones(3, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("p", [-0.1, 1.0, 0.999])
def test_dropout_outside_its_range_is_refused(p):
    with pytest.raises(ValueError, match=f"dropout={p} is not in"):
        Dropout(p)
