"""Maps of what attention blocks read from, against Jacobians and weights that are known."""

import pytest
import torch
from attention_blocks import SMALL, add_noise, build_block
from hypothesis import given, settings
from hypothesis import strategies as st
from test_seq2seq import TOKENIZER, compose_config, speech_batch
from torch.testing import assert_close

from famx.contracts.attention import D
from famx.experiment import build_model
from famx.monitoring.pictures import attention_pictures
from famx.monitoring.sensitivity import attention_blocks, measure_sensitivity
from famx.monitoring.utterance import text_tokens
from famx.registry import build, names
from famx.seeding import rng_state

T = 6
S = 5


def block_of(name, causal):
    """Returns a block with random weights, of settings that reach its branches."""
    torch.manual_seed(0)
    block = build_block(name, causal, **SMALL.get(name, {}))
    add_noise(block, 0.1)
    return block.eval()


def map_of(block, *inputs, **options):
    return measure_sensitivity({"block": block}, lambda: block(*inputs), **options)["block"]


def shares_of_jacobian(function, source):
    """Returns the norms of the full Jacobian (t, d, s, d), as shares of each row."""
    jacobian = torch.autograd.functional.jacobian(function, source)[0, :, :, 0]
    norms = jacobian.square().sum((1, 3)).sqrt()
    return norms / norms.sum(1, keepdim=True)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", names("attention"))
def test_map_equals_the_full_jacobian(name, causal):
    block = block_of(name, causal)
    x = torch.randn(1, T, D)
    measured = map_of(block, x, directions=D)
    assert_close(measured.shares, shares_of_jacobian(block, x), atol=1e-5, rtol=1e-4)
    assert not measured.from_memory
    # few directions are near it
    estimated = map_of(block, x).shares
    assert (estimated - measured.shares).norm() < 0.4 * measured.shares.norm()
    if causal:
        assert not measured.shares.triu(1).any()


@pytest.mark.parametrize("name", names("attention"))
def test_map_of_a_memory_equals_the_full_jacobian(name):
    block = block_of(name, causal=True)
    x = torch.randn(1, T, D)
    memory = torch.randn(1, S, D)
    measured = map_of(block, x, memory, directions=D)
    expected = shares_of_jacobian(lambda memory: block(x, memory), memory)
    assert_close(measured.shares, expected, atol=1e-5, rtol=1e-4)
    assert measured.from_memory


@pytest.mark.parametrize("name", names("attention"))
def test_measuring_changes_nothing(name):
    block = block_of(name, causal=False)
    x = torch.randn(1, T, D)
    expected = block(x)
    buffers = {key: buffer.clone() for key, buffer in block.named_buffers()}
    state = rng_state()
    outputs = []
    measure_sensitivity({"block": block}, lambda: outputs.append(block(x)))
    assert_close(outputs[0], expected)
    assert not block.training
    assert all(p.grad is None for p in block.parameters())
    for key, buffer in block.named_buffers():
        assert_close(buffer, buffers[key], atol=0, rtol=0, equal_nan=True)
    assert torch.equal(rng_state()["torch"], state["torch"])
    assert not block._forward_hooks and not block._forward_pre_hooks


@pytest.mark.parametrize("directions", [1, 3])
@pytest.mark.parametrize("causal", [True, False])
def test_map_of_one_head_with_known_weights_is_these_weights(causal, directions):
    # scores are the distances alone, so that the Jacobian is weight[t, s] * W_out W_value
    block = build_block("alibi", causal, n_heads=1, rotary="none")
    with torch.no_grad():
        block.query.weight.zero_()
        block.query.bias.zero_()
        block.key_value.weight[:D] = 0
    positions = torch.arange(T)
    scores = -(2.0**-8) * (positions[:, None] - positions).abs()
    if causal:
        scores = scores.masked_fill(positions > positions[:, None], -torch.inf)
    measured = map_of(block, torch.randn(1, T, D), directions=directions)
    assert_close(measured.shares, scores.softmax(-1), atol=1e-5, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 12), max_queries=st.integers(1, 12), causal=st.booleans())
def test_few_queries_are_rows_of_the_full_map(length, max_queries, causal):
    block = block_of("multihead", causal)
    x = torch.randn(1, length, D)
    full = map_of(block, x).shares
    part = map_of(block, x, max_queries=max_queries)
    assert len(part.queries) == min(length, max_queries)
    assert part.queries.unique().tolist() == part.queries.tolist()
    assert part.length == length
    assert_close(part.shares, full[part.queries], atol=1e-5, rtol=1e-4)
    assert_close(part.shares.sum(1), torch.ones(len(part.queries)))


def test_a_block_that_reads_nothing_has_no_shares():
    block = block_of("multihead", causal=False)
    with torch.no_grad():
        block.out.weight.zero_()
    assert map_of(block, torch.randn(1, T, D)).shares.isnan().all()


def test_an_error_leaves_no_hook():
    block = block_of("multihead", causal=False)
    with pytest.raises(RuntimeError):
        map_of(block, torch.randn(1, T, D + 1))
    assert not block._forward_hooks and not block._forward_pre_hooks


@pytest.mark.parametrize("attention", ["multihead", "worm", "content_update", "gated_pass"])
def test_blocks_of_all_layers_are_measured_in_one_pass(attention):
    words = ("model.n_layers=2", "model.decoder_layers=2", f"attention={attention}", "layer=skip")
    torch.manual_seed(0)
    model = build_model(compose_config(*words), TOKENIZER.get_vocab_size()).eval()
    batch = speech_batch(("abca",))
    text = text_tokens(batch)
    with torch.no_grad():
        expected = model.text_scores(text, model.encode(batch.inputs))
    outputs = []

    def run():
        outputs.append(model.text_scores(text, model.encode(batch.inputs)))

    maps = measure_sensitivity(attention_blocks(model), run)
    kinds = ("layer", "text_layer", "memory_layer")
    assert set(maps) == {f"{kind}_{number}" for kind in kinds for number in (1, 2)}
    assert_close(outputs[0], expected, atol=1e-4, rtol=1e-4)
    n_frames = maps["layer_1"].length
    for name, measured in maps.items():
        assert measured.from_memory == name.startswith("memory")
        assert measured.length == (n_frames if name.startswith("layer") else text.shape[1])
        # the second layer receives messages, and a closed gate reads nothing
        rows = measured.shares[~measured.shares.isnan().any(1)]
        assert_close(rows.sum(1), torch.ones(len(rows)))
    task = build("task", {"name": "seq2seq"}, tokenizer=TOKENIZER)
    pictures = attention_pictures(task, model, batch)
    assert set(pictures) == {f"attention/{name}" for name in maps}
