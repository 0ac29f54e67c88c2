"""Blocks that compute long sequences in chunks of queries equal their form for short ones."""

import copy

import pytest
import torch
from attention_blocks import add_noise, build_block, example_masks
from torch.testing import assert_close

from famx.analysis import cost
from famx.attention import _chunks
from famx.contracts.attention import D, H
from famx.nn.state import DecodeState

BLOCKS = {
    "relative_force": {},
    "taylor": {"order": 4},
    "topk": {"keys": 3},
}


@pytest.fixture
def small_chunks(monkeypatch):
    """Returns a function after whose call short sequences are computed in chunks of few queries."""

    def activate(batch, keys, itemsize=8):
        monkeypatch.setattr(_chunks, "LARGE", 0)
        monkeypatch.setattr(_chunks, "CHUNK", 4 * batch * H * keys * itemsize)

    return activate


def run(block, x, memory, mask):
    """Returns the output, and the gradients of the inputs and of all parameters."""
    inputs = [x, *block.parameters()]
    y = block(x, memory, mask)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return y, torch.autograd.grad((y * weights).sum(), inputs, materialize_grads=True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_chunks_change_neither_output_nor_gradients(name, causal, small_chunks):
    block = build_block(name, causal, **BLOCKS[name]).double()
    add_noise(block, 0.3)
    x = torch.randn(2, 11, D, dtype=torch.float64, requires_grad=True)
    masks = example_masks(2, H, 11, 11)
    hidden = torch.ones(2, 1, 1, 11, dtype=torch.bool)
    hidden[1] = False
    cases = [(None, mask) for mask in (*masks, hidden)]
    memory = torch.randn(2, 5, D, dtype=torch.float64)
    cases += [(memory, mask) for mask in example_masks(2, H, 11, 5)]
    expected = [run(block, x, *case) for case in cases]
    small_chunks(2, 11)
    assert _chunks.queries_per_chunk((2, H, 11, 11), 8) == 4
    for case, (y, gradients) in zip(cases, expected, strict=True):
        chunked, chunked_gradients = run(block, x, *case)
        assert_close(chunked, y)
        assert_close(chunked_gradients, gradients)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_chunks_are_equal_in_single_precision(name, causal, small_chunks):
    block = build_block(name, causal, **BLOCKS[name])
    x = torch.randn(2, 11, D, requires_grad=True)
    y, gradients = run(block, x, None, None)
    small_chunks(2, 11, itemsize=4)
    chunked, chunked_gradients = run(block, x, None, None)
    assert_close(chunked, y, rtol=1e-5, atol=1e-5)
    for gradient, expected in zip(chunked_gradients, gradients, strict=True):
        assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["relative_force", "taylor"])
def test_chunks_run_under_autocast(name, small_chunks):
    block = build_block(name, **BLOCKS[name])
    x = torch.randn(2, 11, D, requires_grad=True)
    expected = block(x)
    small_chunks(2, 11, itemsize=4)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    y.float().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in block.parameters())
    assert_close(y.float(), expected, rtol=0, atol=0.1 * expected.abs().max().item())


def test_decoding_in_chunks_of_a_sequence_equals_a_full_pass(small_chunks):
    block = build_block("relative_force", causal=True).eval()
    x = torch.randn(2, 9, D)
    expected = block(x)
    small_chunks(2, 9, itemsize=4)
    assert_close(block(x), expected, rtol=1e-4, atol=1e-5)
    state = DecodeState()
    decoded = torch.cat([block(part, state=state) for part in x.split(3, 1)], 1)
    assert_close(decoded, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_metrics_of_relative_force_are_equal_in_chunks(causal, small_chunks):
    block = build_block("relative_force", causal)
    block.observed = True
    x = torch.randn(2, 11, D)
    block(x)
    expected = copy.deepcopy(block.metrics)
    small_chunks(2, 11, itemsize=4)
    block(x)
    assert_close(block.metrics, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"), [("relative_force", {"hop_levels": 1}), ("taylor", {})]
)
def test_chunks_bound_the_memory_of_a_training_pass(name, options, monkeypatch):
    # long enough for the scores to need more than vectors of all positions
    t = 512
    x = torch.randn(2, t, D, requires_grad=True)
    block = build_block(name, **options)
    scores = 2 * H * t * t * 4
    assert cost.memory(block, x) > 3 * scores
    monkeypatch.setattr(_chunks, "LARGE", scores // 2)
    monkeypatch.setattr(_chunks, "CHUNK", scores // 16)
    assert cost.memory(block, x) < 1.5 * scores
