import functools

import pytest
import torch
from reference import mixes
from reference.myelinated import skipping
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from famx.attention import as_torch_mha
from famx.attention._banded import banded
from famx.contracts import applicable, contracts
from famx.contracts.attention import D, H
from famx.nn.masks import visible
from famx.registry import PARTS, build, names


@pytest.mark.parametrize(
    ("name", "law"),
    [
        (name, law)
        for name in names("attention")
        for law in applicable("attention", PARTS["attention"][name])
    ],
)
def test_law(name, law):
    contracts("attention")[law](PARTS["attention"][name])


SMALL = {
    "grouped_query": {"key_heads": 1},
    "sliding_window": {"windows": (1, 3)},
    "adaptive_span": {"max_span": 3, "ramp": 2, "cost": 0.1},
    "topk": {"keys": 2},
    "taylor": {"order": 6},
    "focus": {"steps": 4, "threshold": 0.3},
}


@pytest.mark.parametrize(
    "law", ["causal", "mask_obeyed", "padding_independent", "fully_masked", "every_gradient"]
)
@pytest.mark.parametrize("name", SMALL)
def test_laws_hold_where_a_setting_bites(name, law):
    contracts("attention")[law](functools.partial(PARTS["attention"][name], **SMALL[name]))


def build_block(name, causal=False, rotary="rope", **hyper):
    rotary = build("rotary", {"name": rotary}, head_dim=D // H)
    return build(
        "attention", {"name": name, **hyper}, d_model=D, n_heads=H, rotary=rotary, causal=causal
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", names("attention"))
def test_all_precisions_go_backward_also_beside_a_sample_that_is_hidden_whole(name, dtype):
    block, x, mask = (
        build_block(name).to(dtype),
        torch.randn(2, 7, D, dtype=dtype),
        torch.ones(2, 1, 1, 7) > 0,
    )
    mask[0] = False
    y = block(x, mask=mask)
    (100 * y).sum().backward()
    assert y.dtype is dtype and y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in block.parameters() if p.grad is not None)


def test_multihead_equals_torch():
    block, theirs = (
        build_block("multihead", rotary="none"),
        torch.nn.MultiheadAttention(D, H, batch_first=True),
    )
    theirs.in_proj_weight.data = torch.cat((block.query.weight, block.key_value.weight)).detach()
    theirs.in_proj_bias.data = torch.cat((block.query.bias, block.key_value.bias)).detach()
    theirs.out_proj.load_state_dict(block.out.state_dict())
    x, memory, seen = (
        torch.randn(2, 7, D),
        torch.randn(2, 5, D),
        torch.tensor([5, 3])[:, None] > torch.arange(5),
    )
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


@pytest.mark.parametrize("name", ["myelinated", "worm"])
@pytest.mark.parametrize("causal", [False, True])
def test_an_axon_is_plain_layers_with_all_gates_open_and_the_identity_with_all_shut(name, causal):
    axon = build_block(name, causal).eval()
    axon = getattr(axon, "axon", axon)
    with torch.no_grad():
        for p in axon.parameters():
            p += 0.3 * torch.randn_like(p)
        axon.policy[-1].bias.copy_(torch.tensor([99.0, 0.0, 0.0]))
        axon.jump_weights.zero_()
        axon.working_memory.zero_()
        axon.memory_gate.bias.fill_(199.0)
        gates = [
            *(gate for node in axon.nodes for gate in (node.importance, node.gate)),
            axon.mlp_gate,
        ]
        for gate in gates:
            gate.bias.fill_(99.0)
        x = torch.randn(2, 7, D)
        y = x
        for node in axon.nodes:
            value = axon.heads(node.norm(y))
            turned = axon.rotary(value)
            attended = scaled_dot_product_attention(turned, turned, value, is_causal=causal)
            y = y + node.adapter(attended.transpose(1, 2).flatten(2))
        assert_close(axon(x), y + axon.mlp(axon.mlp_norm(y)) - x, rtol=1e-4, atol=1e-5)
        for gate in gates:
            gate.bias.fill_(-99.0)
        assert_close(axon(x), torch.zeros_like(x))


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
        assert_close(
            *(torch.autograd.grad(z.square().sum(), (q, k, v, reach)) for z in (y, expected))
        )


def test_sliding_window_shows_each_head_its_own_width():
    block, x = build_block("sliding_window", windows=(2, 3)), torch.randn(2, 9, D)
    dense = build_block("multihead")
    dense.load_state_dict(block.state_dict())
    distance = (torch.arange(9)[:, None] - torch.arange(9)).abs()
    widths = torch.tensor([2, 2, 3, 3])[:, None, None]
    assert_close(block(x), dense(x, mask=(distance < widths)[None]))
    memory = torch.randn(2, 5, D)
    assert_close(block(x, memory), dense(x, memory))


def like_multihead(name, causal=False, **hyper):
    """A block, and plain attention with its weights."""
    block, plain = (
        build_block(each, causal, **more) for each, more in ((name, hyper), ("multihead", {}))
    )
    plain.load_state_dict(block.state_dict(), strict=False)
    return block, plain


@pytest.mark.parametrize("causal", [False, True])
def test_grouped_query_equals_plain_attention_with_repeated_heads(causal):
    block, plain = (
        build_block("grouped_query", causal, key_heads=2),
        build_block("multihead", causal),
    )
    for name in ("query", "out"):
        getattr(plain, name).load_state_dict(getattr(block, name).state_dict())
    for mine, theirs in zip(
        block.key_value.parameters(), plain.key_value.parameters(), strict=True
    ):
        groups = mine.detach().unflatten(0, (2, 2, D // H))
        theirs.data = groups.repeat_interleave(2, dim=1).flatten(0, 2)
    x, state = torch.randn(2, 7, D), {}
    assert_close(block(x), plain(x))
    block(x, state=state)
    assert state[block]["key"].shape == (2, 2, 7, D // H)


@pytest.mark.parametrize("causal", [False, True])
def test_mixes_equal_their_formulas(causal):
    q, k, v = torch.randn(2, H, 5, 6), torch.randn(2, H, 7, 6), torch.randn(2, H, 7, 6)
    for mask in some_masks(2, H, 5, 7):
        seen = visible(mask, 5, 7, causal, q.device)
        seen = torch.ones(2, H, 5, 7, dtype=torch.bool) if seen is None else seen.expand(2, H, 5, 7)
        for name in ("cosine", "gaussian", "taylor", "topk", "alibi", "differential", "focus"):
            block = build_block(name, causal, **SMALL.get(name, {}))
            expected = getattr(mixes, name)(block, q, k, v, seen)
            assert_close(
                block.mix(q, k, v, mask, causal),
                expected,
                rtol=1e-4,
                atol=1e-5,
                msg=lambda m, n=name: f"{n}: {m}",
            )


@pytest.mark.parametrize("causal", [False, True])
def test_topk_takes_no_more_keys_than_it_may_where_all_are_alike(causal):
    block, q = build_block("topk", causal, keys=3), torch.randn(2, H, 5, 7)
    for mask in some_masks(2, H, 5, 7):
        seen = visible(mask, 5, 7, causal, q.device)
        seen = torch.ones(2, H, 5, 7) > 0 if seen is None else seen.expand(2, H, 5, 7)
        weights = block.mix(
            q, torch.ones(2, H, 7, 7), torch.eye(7).expand(2, H, 7, 7), mask, causal
        )
        taken = seen.sum(-1, keepdim=True).clamp(max=3)
        assert_close((weights > 0).sum(-1, keepdim=True), taken)
        assert_close(weights, torch.where((weights > 0) & seen, 1 / taken, 0.0))


def test_gaussian_equals_plain_attention_with_one_more_channel():
    block = build_block("gaussian")
    q, k, v = (torch.randn(2, H, 7, 6) for _ in range(3))
    wide = torch.cat((k, -k.square().sum(-1, keepdim=True) / 2), -1)
    expected = scaled_dot_product_attention(
        torch.cat((q, torch.ones(2, H, 7, 1)), -1), wide, v, scale=6**-0.5
    )
    assert_close(block.mix(q, k, v, None, False), expected)


@pytest.mark.parametrize("name", ["alibi", "sliding_window", "adaptive_span"])
def test_a_memory_has_no_distance(name):
    block, plain = like_multihead(name, causal=True, **SMALL.get(name, {}))
    x, memory = torch.randn(2, 7, D), torch.randn(2, 9, D)
    assert_close(block(x, memory), plain(x, memory))


def test_adaptive_span_looks_as_far_as_its_content_says():
    block, plain = like_multihead("adaptive_span", max_span=4, ramp=1, temp_scale=0.0, cost=2.0)
    block.observed = True
    x, distance = torch.randn(2, 9, D), (torch.arange(9)[:, None] - torch.arange(9)).abs()
    with torch.no_grad():
        block.span.weight.zero_()
        for bias, share in ((-99.0, 0.0), (99.0, 1.0), (0.0, 0.5)):
            block.span.bias.fill_(bias)
            assert_close(block(x), plain(x, mask=(distance <= 4 * share)[None, None]))
            assert_close(block.penalty(), torch.tensor(2 * share))
            assert_close(block.metrics["span"], torch.full((H,), 4 * share))


def test_adaptive_span_does_not_count_padding():
    block, x = build_block("adaptive_span", cost=1.0), torch.randn(2, 9, D)
    real = torch.arange(9) < 6
    block(x[:, :6])
    short = block.penalty()
    block(x, mask=real[None, None, None])
    assert_close(block.penalty(), short)
    assert block.penalty() is None


def test_focus_stops_where_nothing_changes():
    block, x = build_block("focus", threshold=9.0, steps=3), torch.randn(2, 7, D)
    once, block.observed = build_block("focus", steps=1), True
    once.load_state_dict(block.state_dict())
    assert_close(block(x), once(x))
    assert_close(block.metrics["moving"], torch.zeros(3))


def test_a_block_is_called_as_torch_calls_its_own():
    block, theirs = (
        build_block("multihead", rotary="none"),
        torch.nn.MultiheadAttention(D, H, batch_first=True),
    )
    theirs.in_proj_weight.data = torch.cat((block.query.weight, block.key_value.weight)).detach()
    theirs.in_proj_bias.data = torch.cat((block.query.bias, block.key_value.bias)).detach()
    theirs.out_proj.load_state_dict(block.out.state_dict())
    ours = as_torch_mha(block)
    assert len(list(ours.parameters())) == len(list(block.parameters()))
    x, memory = torch.randn(2, 5, D), torch.randn(2, 7, D)
    padding = torch.arange(7) >= torch.tensor([7, 4])[:, None]
    future = torch.ones(5, 7, dtype=torch.bool).triu(1)
    weights = torch.zeros(5, 7).masked_fill(future, -torch.inf)
    by_head = (torch.rand(2 * H, 5, 7) < 0.5) & (torch.arange(7) > 0)
    for hidden in (None, future, weights, by_head):
        for key in (x, memory):
            call = {
                "attn_mask": None if hidden is None else hidden[..., : key.shape[1]],
                "need_weights": False,
            }
            y, none = ours(x, key, key, **call)
            assert none is None
            assert_close(y, theirs(x, key, key, **call)[0])
    for key in (x[1], memory[1]):
        call = {"key_padding_mask": padding[1, : len(key)], "attn_mask": future[:, : len(key)]}
        assert_close(ours(x[1], key, key, **call)[0], theirs(x[1], key, key, **call)[0])
    both = {"key_padding_mask": padding, "attn_mask": future}
    assert_close(ours(x, memory, memory, **both)[0], theirs(x, memory, memory, **both)[0])
    assert_close(
        ours(x, x, x, attn_mask=future[:, :5], is_causal=True)[0],
        theirs(x, x, x, attn_mask=future[:, :5])[0],
    )


def test_what_a_block_cannot_do_in_place_of_torch_is_refused():
    ours, x = as_torch_mha(build_block("multihead")), torch.randn(2, 5, D)
    for wrong, words in (
        ({"value": torch.randn(2, 5, D)}, "value is not key"),
        ({"attn_mask": torch.ones(5, 5)}, "0 and -inf"),
        ({"is_causal": True}, "needs attn_mask"),
        (
            {"attn_mask": torch.zeros(2, 5, 5)},
            r"attn_mask is of \(2, 5, 5\), it has to be of \(5, 5\) or \(8, 5, 5\)",
        ),
        (
            {"key_padding_mask": torch.zeros(2, 4)},
            r"key_padding_mask is of \(2, 4\), it has to be of \(2, 5\)",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            ours(**{"query": x, "key": x, "value": x, **wrong})


def test_what_is_no_block_is_refused():
    with pytest.raises(TypeError, match="a Linear without n_heads is no attention block"):
        as_torch_mha(torch.nn.Linear(3, 3))


@pytest.mark.parametrize("shape", [(0, 5, D), (2, 0, D)])
@pytest.mark.parametrize("name", names("attention"))
def test_nothing_gives_nothing(name, shape):
    for causal in (False, True):
        assert build_block(name, causal)(torch.zeros(shape)).shape == shape


def test_torchs_stacks_take_blocks():
    encoder = torch.nn.TransformerEncoderLayer(D, H, 2 * D, batch_first=True)
    encoder.self_attn = as_torch_mha(build_block("multihead"))
    decoder = torch.nn.TransformerDecoderLayer(D, H, 2 * D, batch_first=True)
    decoder.self_attn, decoder.multihead_attn = (
        as_torch_mha(build_block("multihead", c)) for c in (True, False)
    )
    memory = torch.nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False).eval()(
        torch.randn(2, 7, D)
    )
    assert torch.nn.TransformerDecoder(decoder, 2).eval()(torch.randn(2, 5, D), memory).shape == (
        2,
        5,
        D,
    )
