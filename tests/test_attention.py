import functools

import pytest
import torch
from reference.myelinated import skipping
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from famx.attention.band import banded
from famx.attention.base import visible
from famx.laws import kept, laws
from famx.laws.attention import D, H
from famx.registry import PARTS, build, names


@pytest.mark.parametrize(
    ("name", "law"), [(name, law) for name in names("attention") for law in kept("attention", PARTS["attention"][name])]
)
def test_law(name, law):
    laws("attention")[law](PARTS["attention"][name])


def build_block(name, causal=False, rotary="rope", **hyper):
    rotary = build("rotary", {"name": rotary}, head_dim=D // H)
    return build("attention", {"name": name, **hyper}, d_model=D, n_heads=H, rotary=rotary, causal=causal)


def test_multihead_equals_torch():
    block, theirs = build_block("multihead", rotary="none"), torch.nn.MultiheadAttention(D, H, batch_first=True)
    theirs.in_proj_weight.data = torch.cat((block.query.weight, block.key_value.weight)).detach()
    theirs.in_proj_bias.data = torch.cat((block.query.bias, block.key_value.bias)).detach()
    theirs.out_proj.load_state_dict(block.out.state_dict())
    x, memory, seen = torch.randn(2, 7, D), torch.randn(2, 5, D), torch.tensor([5, 3])[:, None] > torch.arange(5)
    expected, _ = theirs(x, memory, memory, key_padding_mask=~seen)
    assert_close(block(x, memory, seen[:, None, None]), expected)


@pytest.mark.parametrize("causal", [False, True])
def test_myelinated_equals_one_that_really_skips(causal):
    block = build_block("myelinated", causal, n_layers=4, threshold=0.5).eval()
    block.observed = True
    with torch.no_grad():
        for p in block.parameters():
            p += 0.5 * torch.randn_like(p)
        x = torch.randn(4, 9, D)
        expected, work = zip(*(skipping(block, one) for one in x), strict=True)
        assert_close(block(x), torch.stack(expected), rtol=1e-4, atol=1e-4)
    visited = torch.tensor(work).sum(0) / x[..., 0].numel()
    assert_close(block.metrics["active"], visited)
    assert visited.min() > 0 and visited.max() < 1, "the example shows no skipping"


def test_myelinated_pays_for_the_nodes_it_visits():
    block = build_block("myelinated", cost=2.0)
    assert block.penalty() is None
    with torch.no_grad():
        for node in block.nodes:
            node.importance.weight.zero_()
            node.importance.bias.fill_(-9.0)
    block(torch.randn(2, 7, D))
    assert block.penalty() == 0
    with torch.no_grad():
        for node in block.nodes:
            node.importance.bias.fill_(9.0)
        block.policy[-1].bias.copy_(torch.tensor([99.0, 0.0, 0.0]))
    block(torch.randn(2, 7, D))
    penalty = block.penalty()
    assert_close(penalty, torch.tensor(2.0))
    penalty.backward()
    assert all((node.importance.bias.grad > 0).all() for node in block.nodes)


def test_myelinated_jumps_as_often_as_its_policy_says():
    block = build_block("myelinated", causal=True)
    block.observed = True
    with torch.no_grad():
        block.policy[-1].weight.zero_()
        block.policy[-1].bias.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
        block(torch.randn(64, 128, D))
    assert_close(block.metrics["jumps"], torch.tensor([0.5, 0.3, 0.2]), atol=0.02, rtol=0)


def some_masks(b, h, t, s):
    """None, padding, and one that differs by head and query."""
    padding = torch.arange(s) < torch.tensor([s, 1 + s // 2])[:, None, None, None]
    return None, padding, torch.rand(b, h, t, s) < 0.7


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("t", "s"), [(1, 1), (1, 90), (7, 7), (64, 64), (150, 150), (70, 200)])
@pytest.mark.parametrize("window", [1, 5, 100, 1000])
def test_a_band_equals_dense_attention_under_a_mask(window, t, s, causal):
    q, k, v = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (t, s, s))
    distance = torch.arange(s - t, s)[:, None] - torch.arange(s)
    near = (distance.abs() < window) & (distance >= 0 if causal else True)
    for mask in some_masks(2, 3, t, s):
        expected = scaled_dot_product_attention(q, k, v, near if mask is None else near & mask)
        y = banded(q, k, v, window, mask, causal)
        assert_close(y, expected)
        assert_close(*(torch.autograd.grad(z.square().sum(), (q, k, v)) for z in (y, expected)))


@pytest.mark.parametrize("causal", [False, True])
def test_a_soft_band_weighs_keys_by_their_distance(causal):
    q, k, v = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (70, 90, 90))
    reach = (20 * torch.rand(2, 3, 70)).requires_grad_()
    distance = (torch.arange(20, 90)[:, None] - torch.arange(90)).float()
    for mask in some_masks(2, 3, 70, 90):
        m = ((reach[..., None] + 8 - distance.abs()) / 8).clamp(0, 1)
        seen = visible(mask, 70, 90, causal, q.device)
        weights = m * (q @ k.mT / 8**0.5).exp() * (1 if seen is None else seen)
        expected = weights / weights.sum(-1, keepdim=True).clamp(min=1e-9) @ v
        y = banded(q, k, v, 28, mask, causal, reach, ramp=8)
        assert_close(y, expected)
        assert_close(*(torch.autograd.grad(z.square().sum(), (q, k, v, reach)) for z in (y, expected)))


def test_sliding_window_shows_each_head_its_own_width():
    block, x = build_block("sliding_window", windows=(2, 3)), torch.randn(2, 9, D)
    dense = build_block("multihead")
    dense.load_state_dict(block.state_dict())
    distance = (torch.arange(9)[:, None] - torch.arange(9)).abs()
    widths = torch.tensor([2, 2, 3, 3])[:, None, None]
    assert_close(block(x), dense(x, mask=(distance < widths)[None]))
    memory = torch.randn(2, 5, D)
    assert_close(block(x, memory), dense(x, memory))


@pytest.mark.parametrize("law", ["causal", "mask_obeyed", "padding_independent", "fully_masked", "every_gradient"])
def test_narrow_windows_keep_the_laws_too(law):
    laws("attention")[law](functools.partial(PARTS["attention"]["sliding_window"], windows=(1, 3)))
