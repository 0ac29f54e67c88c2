from functools import partial

import pytest
import torch
from reference.conformer import convolution
from torch import nn
from torch.testing import assert_close

from famx.contracts import applicable, contracts
from famx.layer.base import Dropout
from famx.registry import PARTS, build, names

D = 24


@pytest.mark.parametrize(
    ("name", "law"),
    [(name, law) for name in names("layer") for law in applicable("layer", PARTS["layer"][name])],
)
def test_law(name, law):
    contracts("layer")[law](PARTS["layer"][name])


def build_layer(name, causal=False, **hyper):
    """A layer in double precision and evaluation, away from its first weights."""
    rotary = build("rotary", {"name": "none"}, head_dim=D // 4)
    sizes = {"d_model": D, "n_heads": 4, "rotary": rotary, "causal": causal}
    factories = {
        "attention": partial(build, "attention", {"name": "multihead"}, **sizes),
        "feedforward": partial(build, "feedforward", {"name": "gelu"}, d_model=D),
        "norm": partial(build, "norm", {"name": "layernorm"}, d_model=D),
    }
    layer = (
        build("layer", {"name": name, **hyper}, d_model=D, causal=causal, **factories)
        .double()
        .eval()
    )
    with torch.no_grad():
        for p in layer.parameters():
            p += 0.3 * torch.randn_like(p)
    return layer


def example(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_each_wiring_is_its_formula():
    x = example(2, 7, D)
    post = build_layer("postnorm")
    y = post.attention_norm(x + post.attention(x))
    assert_close(post(x), post.feedforward_norm(y + post.feedforward(y)))
    sandwich = build_layer("sandwich")
    y = x + sandwich.attended_norm(sandwich.attention(sandwich.attention_norm(x)))
    assert_close(
        sandwich(x), y + sandwich.fed_norm(sandwich.feedforward(sandwich.feedforward_norm(y)))
    )
    parallel = build_layer("parallel")
    y = parallel.norm(x)
    assert_close(parallel(x), x + parallel.attention(y) + parallel.feedforward(y))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel_size", [1, 3, 31])
def test_conformer_equals_a_convolution_by_hand(causal, kernel_size):
    layer = build_layer("conformer", causal, kernel_size=kernel_size)
    with torch.no_grad():
        for one in (x := example(2, 9, D)):
            y = one + layer.first(layer.first_norm(one)) / 2
            y = y + layer.attention(layer.attention_norm(y)[None])[0]
            y = y + convolution(layer.convolution, layer.convolution_norm(y), causal)
            y = layer.last_norm(y + layer.second(layer.second_norm(y)) / 2)
            assert_close(layer(one[None])[0], y)
        padding = torch.ones(2, 1, 1, 9, dtype=torch.bool)
        padding[1, ..., 6:] = False
        # a mask of pairs takes another way, to the same result
        pairs = padding & torch.ones(9, 9, dtype=torch.bool)
        assert_close(layer(x, mask=pairs), layer(x, mask=padding))


def test_packed_sequences_are_convolved_apart():
    layer, first, second = (
        build_layer("conformer", kernel_size=5),
        example(1, 4, D),
        example(1, 6, D),
    )
    pairs = torch.block_diag(torch.ones(4, 4), torch.ones(6, 6)).bool()[None, None]
    packed = layer(torch.cat((first, second), 1), mask=pairs)
    assert_close(packed, torch.cat((layer(first), layer(second)), 1))


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel_size=4 must be odd"):
        build_layer("conformer", kernel_size=4)


def with_gate(layer, bias):
    """The layer with a gate that says the same everywhere."""
    with torch.no_grad():
        layer.gate[-1].weight.zero_()
        layer.gate[-1].bias.fill_(bias)
    return layer


@pytest.mark.parametrize("causal", [False, True])
def test_skip_is_the_plain_layer_when_open_and_the_identity_when_closed(causal):
    skip, plain, x = build_layer("skip", causal), build_layer("prenorm", causal), example(2, 7, D)
    plain.load_state_dict(
        {key: value for key, value in skip.state_dict().items() if key in plain.state_dict()}
    )
    assert_close(with_gate(skip, 9.0)(x), plain(x))
    assert torch.equal(with_gate(skip, -9.0)(x), x)


@pytest.mark.parametrize("causal", [False, True])
def test_skip_decides_for_a_sample_or_causal_for_each_position(causal):
    skip, x = build_layer("skip", causal), example(16, 7, D)
    with torch.no_grad():
        skip.gate[-1].bias.zero_()
    skip.observed = True
    moved = (skip(x) != x).any(-1)
    assert 0 < moved.float().mean() < 1, "the example shows no skipping"
    assert (moved.all(1) | ~moved.any(1)).all() != causal
    assert_close(skip.metrics["compute"], moved.double().mean())


def test_skip_pays_for_the_real_positions_it_computes_and_learns_to_pay_less():
    skip, x = with_gate(build_layer("skip", True, cost=2.0), 9.0), example(2, 7, D)
    skip(x)
    assert skip.penalty() is None
    skip.train()(x)
    assert_close(skip.penalty(), torch.tensor(2.0, dtype=torch.float64))
    assert skip.penalty() is None
    with_gate(skip, -9.0)(x)
    assert skip.penalty() == 0
    with_gate(skip, 1.0)(x)
    skip.penalty().backward()
    assert skip.gate[-1].bias.grad > 0


def test_a_skipped_layer_learns_from_the_task_that_it_should_not_be():
    skip, x = with_gate(build_layer("skip"), -0.1), example(8, 7, D)
    with torch.no_grad():
        wanted = build_layer("prenorm")
        wanted.load_state_dict(
            {key: value for key, value in skip.state_dict().items() if not key.startswith("gate")}
        )
        target = wanted(x)
    assert torch.equal(skip(x), x)
    nn.functional.mse_loss(skip(x), target).backward()
    assert skip.gate[-1].bias.grad < 0


def test_dropout_drops_as_many_as_it_says_and_keeps_the_mean():
    dropout, x = Dropout(0.1), torch.ones(1_000_003)
    y = dropout(x)
    dropped = 26 / 256
    assert_close(y.max().item(), 1 / (1 - dropped))
    assert set(y.unique().tolist()) == {0.0, y.max().item()}
    # 5 standard deviations; of each eighth too, since eight are cut from one random word
    for part in (y, *(y[i::8] for i in range(8))):
        spread = (dropped * (1 - dropped) / len(part)) ** 0.5
        assert abs((part == 0).float().mean() - dropped) < 5 * spread


def test_dropout_is_the_identity_in_evaluation_and_at_zero():
    x = torch.randn(3, 5)
    before = torch.get_rng_state()
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_depends_on_the_seed_alone_and_stops_the_same_gradients():
    x = torch.randn(3, 5, 7, requires_grad=True)
    torch.manual_seed(3)
    first = Dropout(0.5)(x)
    torch.manual_seed(3)
    assert torch.equal(first, Dropout(0.5)(x))
    first.sum().backward()
    assert_close(x.grad, 2.0 * (first != 0))
    assert Dropout(0.5)(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("p", [-0.1, 1.0, 0.999])
def test_dropout_of_everything_or_less_than_nothing_is_refused(p):
    with pytest.raises(ValueError, match=f"dropout={p} is not in"):
        Dropout(p)
