"""Blocks that exchange messages with the blocks of other layers."""

import copy

import pytest
import torch
from attention_blocks import add_noise, build_block, plain_copy
from torch import nn
from torch.testing import assert_close

from famx.contracts.attention import D, H
from famx.model import build_model
from famx.nn.state import DecodeState
from famx.registry import PARTS, names

CONNECTED = [name for name in names("attention") if PARTS["attention"][name].connects_layers]


def full_pass():
    return DecodeState(incremental=False)


def build_stack(name, n=3, causal=True, second_heads=H):
    """Returns blocks of `n` layers; the second one has `second_heads` heads."""
    heads = [H] * n
    if n > 1:
        heads[1] = second_heads
    blocks = [build_block(name, causal, n_heads=n_heads).eval() for n_heads in heads]
    for block in blocks:
        add_noise(block, 0.3)
    return blocks


def run(blocks, x, memory=None, mask=None, state=None):
    for block in blocks:
        x = x + block(x, memory, mask, state)
    return x


def decode(blocks, x, memory=None, mask=None):
    """Runs chunks of two positions with one state."""
    state = DecodeState()
    outputs = []
    for t in range(0, x.shape[1], 2):
        mask_now = None if mask is None else mask[..., : t + 2]
        outputs.append(run(blocks, x[:, t : t + 2], memory, mask_now, state))
    return torch.cat(outputs, 1)


def assert_near(y, expected):
    assert_close(y, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("second_heads", [H, 2])
@pytest.mark.parametrize("name", CONNECTED)
def test_decoding_equals_a_full_pass(name, second_heads):
    blocks = build_stack(name, second_heads=second_heads)
    x = torch.randn(2, 7, D)
    padding = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    padding[1, ..., :2] = False
    for memory, mask in ((None, None), (None, padding), (torch.randn(2, 5, D), None)):
        expected = run(blocks, x, memory, mask, full_pass())
        assert_near(decode(blocks, x, memory, mask), expected)


@pytest.mark.parametrize("name", CONNECTED)
def test_messages_change_the_output(name):
    blocks = build_stack(name)
    x = torch.randn(2, 7, D)
    assert not torch.allclose(run(blocks, x, state=full_pass()), run(blocks, x), atol=1e-3)


@pytest.mark.parametrize("name", CONNECTED)
def test_messages_leak_neither_the_future_nor_the_batch(name):
    blocks = build_stack(name)
    x = torch.randn(2, 7, D)
    changed = x.clone()
    changed[:, 5:] += 1
    changed[1] += 1
    y = run(blocks, x, state=full_pass())
    assert_close(y[0, :5], run(blocks, changed, state=full_pass())[0, :5])


@pytest.mark.parametrize("name", CONNECTED)
def test_self_attention_and_cross_attention_have_separate_messages(name):
    self_blocks = build_stack(name)
    cross_blocks = build_stack(name)
    x = torch.randn(2, 7, D)
    memory = torch.randn(2, 5, D)

    def run_both(x, self_state, cross_state):
        for self_block, cross_block in zip(self_blocks, cross_blocks, strict=True):
            x = x + self_block(x, state=self_state)
            x = x + cross_block(x, memory, state=cross_state)
        return x

    expected = run_both(x, full_pass(), full_pass())
    shared = full_pass()
    assert_near(run_both(x, shared, shared), expected)
    shared = DecodeState()
    chunks = [run_both(x[:, t : t + 2], shared, shared) for t in range(0, 7, 2)]
    assert_near(torch.cat(chunks, 1), expected)


def test_a_message_of_another_chunk_is_dropped():
    block = build_block("content_update")
    state = DecodeState()
    state.message(block, cross=False, offset=0)["keys"] = torch.zeros(1)
    assert "keys" in state.message(block, cross=False, offset=0)
    assert "keys" not in state.message(block, cross=True, offset=0)
    assert not state.message(block, cross=False, offset=3)


def test_content_update_equals_plain_attention_to_new_or_reused_keys():
    first, second = build_stack("content_update", 2)
    first.predictor[-1].bias.data.fill_(99.0)
    second.predictor[-1].bias.data.fill_(-99.0)
    plain_first = plain_copy(first)
    plain_second = plain_copy(second)
    x = torch.randn(2, 7, D)
    assert_close(first(x), plain_first(x))

    # the second block reuses the keys and values of the first, whatever its own input is
    plain_second.key_value.load_state_dict(plain_first.key_value.state_dict())
    state = full_pass()
    first(x, state=state)
    assert_close(second(x, state=state), plain_second(x))
    unrelated = torch.randn(2, 7, D)
    assert not torch.allclose(second(unrelated, state=state), plain_second(unrelated))


def test_content_update_decides_by_the_positions_of_a_memory_that_all_queries_see():
    block = build_block("content_update").eval()
    # keys and values are updated where the pooled memory is positive
    block.predictor = nn.Linear(D, 2)
    nn.init.ones_(block.predictor.weight)
    nn.init.zeros_(block.predictor.bias)
    memory = torch.ones(1, 5, D)
    memory[:, 2] = -99.0
    mask = torch.ones(1, 1, 7, 5, dtype=torch.bool)
    mask[..., 0, 2] = False
    x = torch.randn(1, 7, D)
    updated = block(x, memory, mask)
    assert not torch.allclose(updated[:, 0], block(x, memory)[:, 0], atol=1e-3)
    assert_close(updated[:, :1], block(x[:, :1], memory, mask[:, :, :1]))


@pytest.mark.parametrize("causal", [False, True])
def test_gated_pass_equals_plain_attention_of_the_heads_that_pass(causal):
    (block,) = build_stack("gated_pass", 1, causal)
    plain = plain_copy(block)
    x = torch.randn(2, 7, D)
    block.threshold.fill_(-9)
    assert_close(block(x), plain(x))
    block.threshold.fill_(9)
    assert_close(block(x), torch.zeros(2, 7, D))
    block.threshold.copy_(torch.tensor([9.0, -9.0, -9.0, -9.0]))
    plain.out.weight.data[:, : D // H] = 0
    plain.out.bias.data *= 3 / 4
    assert_close(block(x), plain(x))


def test_gated_pass_lowers_the_threshold_of_heads_that_passed_at_a_low_loss():
    block = build_block("gated_pass")
    x = torch.randn(2, 7, D)
    start = block.threshold.clone()
    block.after_step(torch.tensor(2.0))
    assert_close(block.threshold, start, msg="moves without a training call")
    block(x)
    block.after_step(torch.tensor(2.0))
    assert_close(block.threshold, start, msg="moves though nothing differs from the means")

    # all heads pass; two of them more often than on average
    block.mean_passed.copy_(torch.tensor([0.5, 1.0, 0.5, 1.0]))
    block(x)
    block.after_step(torch.tensor(1.0))
    assert_close(block.threshold - start, torch.tensor([-0.005, 0.0, -0.005, 0.0]))
    block(x)
    block.after_step(torch.tensor(3.0))
    assert (block.threshold <= start).all() and block.threshold[0] > start[0] - 0.005

    block.eval()(x)
    thresholds = block.threshold.clone()
    block.after_step(torch.tensor(0.0))
    assert_close(block.threshold, thresholds, msg="evaluation moves the thresholds")


@pytest.mark.parametrize("causal", [False, True])
def test_gated_pass_learns_from_all_calls_of_a_step_but_not_from_padding(causal):
    (batched,) = build_stack("gated_pass", 1, causal)
    batched.train()
    unbatched = copy.deepcopy(batched)
    batched.observed = True
    lengths = (9, 4, 7)
    x = torch.randn(3, 9, D)
    batched(x, mask=torch.arange(9) < torch.tensor(lengths)[:, None, None, None])
    for sample, length in zip(x, lengths, strict=True):
        unbatched(sample[None, :length])
    for block in (batched, unbatched):
        block.after_step(torch.tensor(2.0))
    assert_close(batched.mean_passed, unbatched.mean_passed)
    assert_close(batched.metrics["passed"], unbatched.mean_passed)
    assert 0 < unbatched.mean_passed.mean() < 1, "in the example, all heads do the same"


@pytest.mark.parametrize("causal", [False, True])
def test_integrated_merges_plain_attention_where_spans_are_long(causal):
    first, second = build_stack("integrated", 2, causal)
    x = torch.randn(2, 7, D)
    state = full_pass()
    for block, bias in ((first, 99.0), (second, -99.0)):
        block.far.predictor[-1].bias.data.fill_(bias)
        block.near.span.bias.data.fill_(99.0)
    near = plain_copy(first.near)
    far = plain_copy(first.far)
    assert_close(first(x, state=state), first.merge(torch.cat((near(x), far(x)), -1)))

    # the second block reuses the keys and values of the first
    key_value = far.key_value.state_dict()
    near = plain_copy(second.near)
    far = plain_copy(second.far)
    far.key_value.load_state_dict(key_value)
    assert_close(second(x, state=state), second.merge(torch.cat((near(x), far(x)), -1)))


def test_integrated_attends_to_itself_alone_where_spans_are_shortest():
    near = build_stack("integrated", 1)[0].near
    near.span.bias.data.fill_(-99.0)
    near.ramp = 1
    x = torch.randn(2, 7, D)
    _, _, value = near.project(x, None, None)
    assert_close(near(x), near.merge(value))


def lm_model(attention):
    parts = {
        "task": "lm",
        "frontend": "tokens",
        "attention": attention,
        "rotary": "rope",
        "norm": "layernorm",
        "feedforward": "gelu",
    }
    config = {room: {"name": part} for room, part in parts.items()}
    config["layer"] = {"name": "prenorm", "dropout": 0.0}
    config["model"] = {"d_model": D, "n_heads": H, "n_layers": 2}
    model = build_model(config, 11).eval()
    add_noise(model, 0.3)
    return model


@pytest.mark.parametrize("name", CONNECTED)
def test_a_model_connects_its_layers_without_a_state_too(name):
    model = lm_model(name)
    tokens = torch.randint(11, (2, 9))
    scores, _ = model(tokens)
    assert_close(model(tokens, state=full_pass())[0], scores)
    assert_close(model(tokens, state=DecodeState())[0], scores)
    model.connects_layers = False
    assert not torch.allclose(model(tokens)[0], scores, atol=1e-3)


@pytest.mark.parametrize("causal", [False, True])
def test_worm_connects_its_layers_by_a_running_mean(causal):
    blocks = build_stack("worm", 2, causal)
    state = full_pass()
    x = torch.randn(2, 7, D)
    working = blocks[0].initial_memory
    for block in blocks:
        pooled = x.mean(1, keepdim=True)
        if causal:
            pooled = x.cumsum(1) / torch.arange(1, 8)[:, None]
        gate = block.memory_gate(pooled).sigmoid()
        working = gate * working + (1 - gate) * pooled
        z = x + block.read(working)
        expected = block.merge(torch.cat((block.near(z), block.axon(z)), -1))
        y = block(x, state=state)
        assert_near(y, expected)
        x = x + y


@pytest.mark.parametrize("name", sorted({*names("attention")} - {*CONNECTED}))
def test_a_full_pass_caches_nothing(name):
    block = build_block(name, causal=True).eval()
    state = full_pass()
    x = torch.randn(2, 7, D)
    # with a cache, the second call would be a continuation of the first
    assert_close(block(x, state=state), block(x, state=state))
