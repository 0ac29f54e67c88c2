"""Attention blocks against their formulas, plain attention, torch's, and plain references."""

from functools import partial

import pytest
import torch
from attention_blocks import SMALL, add_noise, build_block, example_masks, plain_copy, torch_copy
from reference import mixes
from reference.myelinated import run_skipping
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from famx.contracts import contracts
from famx.contracts.attention import D, H
from famx.contracts.layer import train_to_copy
from famx.layer.prenorm import PreNormLayer
from famx.nn.masks import visible
from famx.nn.state import DecodeState
from famx.registry import PARTS, build, names

STRICT_CONTRACTS = (
    "causal",
    "mask_obeyed",
    "padding_independent",
    "fully_masked",
    "every_gradient",
    "every_gradient_in_a_stack",
)


@pytest.mark.parametrize("contract", STRICT_CONTRACTS)
@pytest.mark.parametrize("name", SMALL)
def test_contracts_hold_with_small_settings(name, contract):
    contracts("attention")[contract](partial(PARTS["attention"][name], **SMALL[name]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", names("attention"))
def test_gradients_are_finite_in_every_dtype_with_a_fully_masked_sample(name, dtype):
    block = build_block(name).to(dtype)
    x = torch.randn(2, 7, D, dtype=dtype)
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    mask[0] = False
    y = block(x, mask=mask)
    (100 * y).sum().backward()
    assert y.dtype is dtype
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in block.parameters() if p.grad is not None)


@pytest.mark.parametrize("shape", [(0, 5, D), (2, 0, D)])
@pytest.mark.parametrize("name", names("attention"))
def test_empty_inputs_give_empty_outputs(name, shape):
    for causal in (False, True):
        assert build_block(name, causal)(torch.zeros(shape)).shape == shape


def test_multihead_equals_torch():
    block = build_block("multihead", rotary="none")
    reference = torch_copy(block)
    x = torch.randn(2, 7, D)
    memory = torch.randn(2, 5, D)
    mask = torch.tensor([5, 3])[:, None] > torch.arange(5)
    expected, _ = reference(x, memory, memory, key_padding_mask=~mask)
    assert_close(block(x, memory, mask[:, None, None]), expected)


@pytest.mark.parametrize("causal", [False, True])
def test_grouped_query_equals_plain_attention_with_repeated_heads(causal):
    block = build_block("grouped_query", causal, key_heads=2)
    plain = build_block("multihead", causal)
    plain.query.load_state_dict(block.query.state_dict())
    plain.out.load_state_dict(block.out.state_dict())
    for name, p in block.key_value.named_parameters():
        groups = p.detach().unflatten(0, (2, 2, D // H))
        repeated = groups.repeat_interleave(2, dim=1).flatten(0, 2)
        plain.key_value.get_parameter(name).data = repeated
    x = torch.randn(2, 7, D)
    assert_close(block(x), plain(x))


def test_grouped_query_caches_its_key_heads_alone():
    block = build_block("grouped_query", key_heads=2)
    state = DecodeState()
    block(torch.randn(2, 7, D), state=state)
    assert state.cache(block)["key"].shape == (2, 2, 7, D // H)


@pytest.mark.parametrize("causal", [False, True])
def test_mixes_equal_their_formulas(causal):
    q = torch.randn(2, H, 5, 6)
    k = torch.randn(2, H, 7, 6)
    v = torch.randn(2, H, 7, 6)
    for mask in example_masks(2, H, 5, 7):
        mask_now = visible(mask, 5, 7, causal, q.device)
        if mask_now is None:
            mask_now = torch.ones(2, H, 5, 7, dtype=torch.bool)
        mask_now = mask_now.expand(2, H, 5, 7)
        for name in ("cosine", "gaussian", "taylor", "topk", "alibi", "differential", "focus"):
            block = build_block(name, causal, **SMALL.get(name, {}))
            expected = getattr(mixes, name)(block, q, k, v, mask_now)
            y = block.mix(q, k, v, mask, causal)
            assert_close(y, expected, rtol=1e-4, atol=1e-5, msg=f"{name} is not its formula")


@pytest.mark.parametrize("causal", [False, True])
def test_topk_attends_to_no_more_keys_where_all_scores_are_equal(causal):
    block = build_block("topk", causal, keys=3)
    q = torch.randn(2, H, 5, 7)
    k = torch.ones(2, H, 7, 7)
    # with the identity as values, the output is the weights
    v = torch.eye(7).expand(2, H, 7, 7)
    for mask in example_masks(2, H, 5, 7):
        mask_now = visible(mask, 5, 7, causal, q.device)
        if mask_now is None:
            mask_now = torch.ones(2, H, 5, 7, dtype=torch.bool)
        weights = block.mix(q, k, v, mask, causal)
        count = mask_now.expand(2, H, 5, 7).sum(-1, keepdim=True).clamp(max=3)
        assert_close((weights > 0).sum(-1, keepdim=True), count)
        assert_close(weights, torch.where((weights > 0) & mask_now, 1 / count, 0.0))


def test_gaussian_equals_plain_attention_with_one_more_channel():
    block = build_block("gaussian")
    q, k, v = torch.randn(3, 2, H, 7, 6)
    wide_q = torch.cat((q, torch.ones(2, H, 7, 1)), -1)
    wide_k = torch.cat((k, -k.square().sum(-1, keepdim=True) / 2), -1)
    expected = scaled_dot_product_attention(wide_q, wide_k, v, scale=6**-0.5)
    assert_close(block.mix(q, k, v, None, False), expected)


@pytest.mark.parametrize("name", ["alibi", "sliding_window", "adaptive_span"])
def test_positions_of_a_memory_have_no_distance(name):
    block = build_block(name, causal=True, **SMALL.get(name, {}))
    x = torch.randn(2, 7, D)
    memory = torch.randn(2, 9, D)
    assert_close(block(x, memory), plain_copy(block)(x, memory))


def test_sliding_window_gives_each_group_of_heads_its_width():
    block = build_block("sliding_window", windows=(2, 3))
    dense = plain_copy(block)
    x = torch.randn(2, 9, D)
    distance = (torch.arange(9)[:, None] - torch.arange(9)).abs()
    widths = torch.tensor([2, 2, 3, 3])[:, None, None]
    assert_close(block(x), dense(x, mask=(distance < widths)[None]))


def test_adaptive_span_attends_as_far_as_its_content_decides():
    block = build_block("adaptive_span", max_span=4, ramp=1, temp_scale=0.0, cost=2.0)
    plain = plain_copy(block)
    block.observed = True
    x = torch.randn(2, 9, D)
    distance = (torch.arange(9)[:, None] - torch.arange(9)).abs()
    with torch.no_grad():
        block.span.weight.zero_()
        for bias, fraction in ((-99.0, 0.0), (99.0, 1.0), (0.0, 0.5)):
            block.span.bias.fill_(bias)
            assert_close(block(x), plain(x, mask=(distance <= 4 * fraction)[None, None]))
            assert_close(block.penalty(), torch.tensor(2 * fraction))
            assert_close(block.metrics["span"], torch.full((H,), 4 * fraction))


def test_adaptive_span_does_not_count_padding():
    block = build_block("adaptive_span", cost=1.0)
    x = torch.randn(2, 9, D)
    real = torch.arange(9) < 6
    block(x[:, :6])
    expected = block.penalty()
    block(x, mask=real[None, None, None])
    assert_close(block.penalty(), expected)
    assert block.penalty() is None


def test_focus_takes_one_step_where_changes_are_below_its_threshold():
    block = build_block("focus", threshold=9.0, steps=3)
    one_step = build_block("focus", steps=1)
    one_step.load_state_dict(block.state_dict())
    block.observed = True
    x = torch.randn(2, 7, D)
    assert_close(block(x), one_step(x))
    assert_close(block.metrics["moving"], torch.zeros(3))


@pytest.mark.parametrize("projects_queries", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_myelinated_equals_a_reference_that_skips(causal, projects_queries):
    options = {"n_layers": 4, "threshold": 0.5, "projects_queries": projects_queries}
    block = build_block("myelinated", causal, **options).eval()
    block.observed = True
    add_noise(block, 0.5)
    x = torch.randn(4, 9, D)
    expected = []
    visits = torch.zeros(4)
    with torch.no_grad():
        for sample in x:
            y, nodes = run_skipping(block, sample)
            expected.append(y)
            visits += torch.tensor(nodes)
        assert_close(block(x), torch.stack(expected), rtol=1e-4, atol=1e-4)
    active = visits / (4 * 9)
    assert_close(block.metrics["active"], active)
    assert active.min() > 0 and active.max() < 1, "the example has no skipping"


def test_myelinated_learns_to_look_two_positions_back_unless_queries_are_keys():
    losses = {}
    for projects_queries in (True, False):
        layers = nn.ModuleList()
        for _ in range(2):
            attention = partial(
                build_block, "myelinated", causal=True, projects_queries=projects_queries
            )
            feedforward = partial(build, "feedforward", {"name": "gelu"}, d_model=D)
            layers.append(PreNormLayer(attention, feedforward, partial(nn.LayerNorm, D)))
        losses[projects_queries] = train_to_copy(layers, steps=60)
    assert losses[True] < 0.5
    assert losses[False] > 1


def open_axon(axon):
    """Opens all gates, turns off jumps and the working memory, and returns the gates."""
    add_noise(axon, 0.3)
    with torch.no_grad():
        axon.policy[-1].bias.copy_(torch.tensor([99.0, 0.0, 0.0]))
        axon.jump_weights.zero_()
        axon.working_memory.zero_()
        axon.memory_gate.bias.fill_(199.0)
    gates = [axon.mlp_gate]
    for node in axon.nodes:
        gates += [node.importance, node.gate]
    set_biases(gates, 99.0)
    return gates


def set_biases(gates, value):
    with torch.no_grad():
        for gate in gates:
            gate.bias.fill_(value)


@pytest.mark.parametrize("name", ["myelinated", "worm"])
@pytest.mark.parametrize("causal", [False, True])
def test_axon_is_plain_layers_with_open_gates_and_the_identity_with_closed_ones(name, causal):
    block = build_block(name, causal).eval()
    axon = block.axon if name == "worm" else block
    gates = open_axon(axon)
    x = torch.randn(2, 7, D)
    with torch.no_grad():
        y = x
        for node in axon.nodes:
            value = axon.split_heads(node.norm(y))
            query = axon.rotary(axon.split_heads(node.norm(y) @ node.query.T))
            key = axon.rotary(value)
            attended = scaled_dot_product_attention(query, key, value, is_causal=causal)
            y = y + node.adapter(attended.transpose(1, 2).flatten(2))
        expected = y + axon.mlp(axon.mlp_norm(y)) - x
        assert_close(axon(x), expected, rtol=1e-4, atol=1e-5)
        set_biases(gates, -99.0)
        assert_close(axon(x), torch.zeros_like(x))


def test_penalty_of_myelinated_is_that_of_the_nodes_it_visits():
    block = build_block("myelinated", cost=2.0)
    x = torch.randn(2, 7, D)
    importance = [node.importance for node in block.nodes]
    assert block.penalty() is None
    with torch.no_grad():
        for linear in importance:
            linear.weight.zero_()
        block.policy[-1].bias.copy_(torch.tensor([99.0, 0.0, 0.0]))
    set_biases(importance, -9.0)
    block(x)
    assert block.penalty() == 0
    set_biases(importance, 9.0)
    block(x)
    penalty = block.penalty()
    assert_close(penalty, torch.tensor(2.0))
    penalty.backward()
    assert all((linear.bias.grad > 0).all() for linear in importance)


def test_myelinated_jumps_as_often_as_its_policy_says():
    block = build_block("myelinated", causal=True)
    block.observed = True
    probabilities = torch.tensor([0.5, 0.3, 0.2])
    with torch.no_grad():
        block.policy[-1].weight.zero_()
        block.policy[-1].bias.copy_(probabilities.log())
        block(torch.randn(64, 128, D))
    assert_close(block.metrics["jumps"], probabilities, atol=0.02, rtol=0)
