"""The relative-force block against a computation of every pair of points."""

import pytest
import torch
from attention_blocks import add_noise, build_block
from reference.relative_force import forward_pairs
from torch.testing import assert_close

from famx.analysis import cost
from famx.contracts.attention import D, H


def example(causal, **options):
    """Returns a block, and sequences in which the points (0, 1) and (2, 3) nearly coincide."""
    block = build_block("relative_force", causal, **options)
    add_noise(block, 0.3)
    with torch.no_grad():
        block.receiver_value.weight[:D] = block.emitter.weight
        block.receiver_value.bias[:D] = block.emitter.bias
    x = torch.randn(2, 9, D)
    x[:, 1] = x[:, 0] + 1e-3 * torch.randn(D)
    x[:, 3] = x[:, 2] + 1e-6 * torch.randn(D)
    return block, x


def gradients(y, inputs):
    return torch.autograd.grad(y.square().sum(), inputs, materialize_grads=True)


@pytest.mark.parametrize("rotary", ["rope", "none"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("hop_levels", [1, 3])
def test_block_equals_a_computation_pair_by_pair(causal, hop_levels, rotary):
    block, x = example(causal, hop_levels=hop_levels, rotary=rotary)
    inputs = [x.requires_grad_(), *block.parameters()]
    padding = torch.arange(9)[None, None, None] < torch.tensor([9, 6])[:, None, None, None]
    memory_padding = padding[..., 2:7]
    for memory, mask in ((None, None), (None, padding), (torch.randn(2, 5, D), memory_padding)):
        y = block(x, memory, mask)
        expected = forward_pairs(block, x, memory, mask)
        assert_close(y, expected, rtol=1e-5, atol=1e-5)
        pairs = zip(gradients(y, inputs), gradients(expected, inputs), strict=True)
        for gradient, expected_gradient in pairs:
            scale = expected_gradient.abs().max().item()
            assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4 * scale)


def test_scores_depend_on_differences_alone():
    block, x = example(False, rotary="none")
    with torch.no_grad():
        y = block(x)
        block.emitter.bias += 1000
        block.receiver_value.bias[:D] += 1000
        assert_close(block(x), forward_pairs(block, x), rtol=1e-5, atol=1e-5)
        assert_close(block(x), y, rtol=1e-3, atol=1e-3)


def test_near_points_are_exact_among_distant_ones():
    block, x = example(False, rotary="none")
    x[:, 4:] *= 30
    with torch.no_grad():
        expected = forward_pairs(block, x)
        assert_close(block(x), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("hop_levels", [1, 3])
def test_edges_follow_the_sigmoid_where_it_is_steep(causal, hop_levels):
    block, x = example(causal, hop_levels=hop_levels)
    with torch.no_grad():
        block.edge_from.weight *= 10
        block.edge_to.weight *= 100
    y = block(x)
    expected = forward_pairs(block, x)
    assert_close(y, expected, rtol=1e-5, atol=1e-5)

    # a saturated edge has almost no gradient, so all are compared on one scale
    inputs = [x.requires_grad_(), block.edge_from.weight, block.edge_to.weight]
    y = block(x)
    expected_gradients = gradients(forward_pairs(block, x), inputs)
    scale = max(gradient.abs().max().item() for gradient in expected_gradients)
    for gradient, expected in zip(gradients(y, inputs), expected_gradients, strict=True):
        assert_close(gradient, expected, rtol=1e-4, atol=1e-4 * scale)


def test_peak_memory_is_a_few_buffers_of_the_size_of_the_scores():
    block = build_block("relative_force", hop_levels=1)
    s = 256
    x = torch.randn(1, s, D)
    float_bytes = 4
    assert cost.peak(lambda: block(x)) <= 4 * s * s * (H + 1) * float_bytes
