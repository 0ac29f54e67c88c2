import pytest
import torch
from reference.relative_force import paired
from torch.testing import assert_close

from famx.analysis import cost
from famx.contracts.attention import D, H
from famx.registry import build


def build_block(name, causal=False, rotary="rope", **hyper):
    rotary = build("rotary", {"name": rotary}, head_dim=D // H)
    return build(
        "attention", {"name": name, **hyper}, d_model=D, n_heads=H, rotary=rotary, causal=causal
    )


def scattered(causal, **hyper):
    """A relative-force block, and sequences among whose points some nearly coincide: pairs (0, 1) and (2, 3)."""
    block = build_block("relative_force", causal, **hyper)
    with torch.no_grad():
        for p in block.parameters():
            p += 0.3 * torch.randn_like(p)
        block.receiver_value.weight[:D] = block.emitter.weight
        block.receiver_value.bias[:D] = block.emitter.bias
        x = torch.randn(2, 9, D)
        x[:, 1] = x[:, 0] + 1e-3 * torch.randn(D)
        x[:, 3] = x[:, 2] + 1e-6 * torch.randn(D)
    return block, x


@pytest.mark.parametrize("rotary", ["rope", "none"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("hop_levels", [1, 3])
def test_relative_force_equals_one_that_holds_every_pair(causal, hop_levels, rotary):
    block, x = scattered(causal, hop_levels=hop_levels, rotary=rotary)
    padding = torch.arange(9)[None, None, None] < torch.tensor([9, 6])[:, None, None, None]
    for memory, mask in ((None, None), (None, padding), (torch.randn(2, 5, D), padding[..., 2:7])):
        assert_close(block(x, memory, mask), paired(block, x, memory, mask), rtol=1e-5, atol=1e-5)
        leaves = [x.requires_grad_(), *block.parameters()]
        found, expected = (
            torch.autograd.grad(y.square().sum(), leaves, materialize_grads=True)
            for y in (block(x, memory, mask), paired(block, x, memory, mask))
        )
        for a, b in zip(found, expected, strict=True):
            assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


def test_relative_force_depends_on_differences_alone():
    """Far from the origin, and among points far apart, two that nearly coincide are as near as they are."""
    block, x = scattered(False, rotary="none")
    with torch.no_grad():
        before = block(x)
        block.emitter.bias += 1000
        block.receiver_value.bias[:D] += 1000
        assert_close(block(x), paired(block, x), rtol=1e-5, atol=1e-5)
        assert_close(block(x), before, rtol=1e-3, atol=1e-3)
        block.emitter.bias -= 1000
        block.receiver_value.bias[:D] -= 1000
        x[:, 4:] *= 30
        expected = paired(block, x)
        assert_close(block(x), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("hop_levels", [1, 3])
def test_relative_force_has_the_edges_of_a_sigmoid_however_steep(causal, hop_levels):
    block, x = scattered(causal, hop_levels=hop_levels)
    with torch.no_grad():
        block.edge_from.weight *= 10
        block.edge_to.weight *= 100
    leaves = [x.requires_grad_(), block.edge_from.weight, block.edge_to.weight]
    found, expected = block(x), paired(block, x)
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found, expected = (torch.autograd.grad(y.square().sum(), leaves) for y in (found, expected))
    scale = max(
        gradient.abs().max().item() for gradient in expected
    )  # a saturated edge has next to none of its own
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-4 * scale)


def test_few_buffers_of_the_scores_size_are_held_at_once():
    block, x, s = build_block("relative_force", hop_levels=1), torch.randn(1, 256, D), 256
    assert cost.peak(lambda: block(x)) <= 4 * s * s * (H + 1) * 4
