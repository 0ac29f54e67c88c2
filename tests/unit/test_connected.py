import copy

import pytest
import torch
from torch.testing import assert_close

from famx.contracts.attention import D, H
from famx.model import build_model
from famx.registry import PARTS, build, names


def build_block(name, causal=False, n_heads=H):
    rotary = build("rotary", {"name": "rope"}, head_dim=D // n_heads)
    return build(
        "attention", {"name": name}, d_model=D, n_heads=n_heads, rotary=rotary, causal=causal
    )


def same_as_multihead(block, causal):
    plain = build_block("multihead", causal)
    plain.load_state_dict(
        {name: p for name, p in block.state_dict().items() if name in plain.state_dict()}
    )
    return plain


def stack(name, n=3, causal=True, heads=H):
    """`n` blocks; heads: of the second one."""
    blocks = [build_block(name, causal, heads if i == 1 else H).eval() for i in range(n)]
    with torch.no_grad():
        for p in torch.nn.ModuleList(blocks).parameters():
            p += 0.3 * torch.randn_like(p)
    return blocks


def through(blocks, x, memory=None, mask=None, state=None):
    for block in blocks:
        x = x + block(x, memory, mask, state)
    return x


CONNECTED = [
    name
    for name in names("attention")
    if getattr(PARTS["attention"][name], "connects_layers", False)
]


@pytest.mark.parametrize("heads", [H, 2])
@pytest.mark.parametrize("name", CONNECTED)
def test_connected_layers_decode_as_they_pass_whole(name, heads):
    blocks, x = stack(name, heads=heads), torch.randn(2, 7, D)
    padding = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    padding[1, ..., :2] = False
    for memory, mask in ((None, None), (None, padding), (torch.randn(2, 5, D), None)):
        whole, state = through(blocks, x, memory, mask, {"whole": True}), {}
        steps = [
            through(
                blocks, x[:, t : t + 2], memory, None if mask is None else mask[..., : t + 2], state
            )
            for t in range(0, 7, 2)
        ]
        assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-4 * whole.abs().max().item())
    assert not torch.allclose(
        through(blocks, x, state={"whole": True}), through(blocks, x), atol=1e-3
    )


@pytest.mark.parametrize("name", CONNECTED)
def test_connected_layers_keep_the_future_and_other_samples_out(name):
    blocks, x = stack(name), torch.randn(2, 7, D)
    other = x.clone()
    other[:, 5:] += 1
    other[1] += 1
    whole, changed = (through(blocks, x, state={"whole": True}) for x in (x, other))
    assert_close(whole[0, :5], changed[0, :5])


@pytest.mark.parametrize("name", CONNECTED)
def test_self_attention_and_attention_to_a_memory_do_not_meet_in_one_state(name):
    pairs, x, memory = (
        list(zip(stack(name), stack(name), strict=True)),
        torch.randn(2, 7, D),
        torch.randn(2, 5, D),
    )

    def decoded(x, own, cross):
        for attention, to_memory in pairs:
            x = x + attention(x, state=own)
            x = x + to_memory(x, memory, state=cross)
        return x

    whole, state, one = decoded(x, {"whole": True}, {"whole": True}), {"whole": True}, {}
    limits = {"rtol": 1e-4, "atol": 1e-4 * whole.abs().max().item()}
    assert_close(decoded(x, state, state), whole, **limits)
    assert_close(
        torch.cat([decoded(x[:, t : t + 2], one, one) for t in range(0, 7, 2)], 1), whole, **limits
    )


def test_content_update_between_its_extremes():
    blocks, x = stack("content_update", 2), torch.randn(2, 7, D)
    for block, bias in zip(blocks, (99.0, -99.0), strict=True):
        block.predictor[-1].bias.data.fill_(bias)
    new, kept = (same_as_multihead(block, True) for block in blocks)
    assert_close(blocks[0](x), new(x))
    kept.key_value.load_state_dict(new.key_value.state_dict())
    state = {"whole": True}
    blocks[0](x, state=state)
    assert_close(blocks[1](x, state=state), kept(x))
    other = torch.randn(2, 7, D)
    assert not torch.allclose(blocks[1](other, state=state), kept(other)), (
        "keys of its own, though none is updated"
    )


@pytest.mark.parametrize("causal", [False, True])
def test_gated_pass_between_its_extremes(causal):
    (block,), x = stack("gated_pass", 1, causal), torch.randn(2, 7, D)
    plain = same_as_multihead(block, causal)
    block.threshold.fill_(-9)
    assert_close(block(x), plain(x))
    block.threshold.fill_(9)
    assert_close(block(x), torch.zeros(2, 7, D))
    block.threshold.copy_(torch.tensor([9.0, -9.0, -9.0, -9.0]))
    plain.out.weight.data[:, : D // H] = 0
    plain.out.bias.data *= 3 / 4
    assert_close(block(x), plain(x))


def test_gated_pass_makes_passing_easier_where_it_helped():
    block, x = build_block("gated_pass"), torch.randn(2, 7, D)
    start = block.threshold.clone()
    block.after_step(torch.tensor(2.0))
    assert_close(block.threshold, start, msg="moves without having been trained")
    block(x)
    block.after_step(torch.tensor(2.0))
    assert_close(block.threshold, start, msg="moves though all is as usual")
    block.usual_passed.copy_(torch.tensor([0.5, 1.0, 0.5, 1.0]))
    block(x)
    block.after_step(torch.tensor(1.0))
    assert_close(block.threshold - start, torch.tensor([-0.005, 0.0, -0.005, 0.0]))
    block(x)
    block.after_step(torch.tensor(3.0))
    assert (block.threshold <= start).all() and block.threshold[0] > start[0] - 0.005
    block.eval()(x)
    before = block.threshold.clone()
    block.after_step(torch.tensor(0.0))
    assert_close(block.threshold, before, msg="evaluation moves the thresholds")


@pytest.mark.parametrize("causal", [False, True])
def test_gated_pass_learns_from_all_calls_of_a_step_and_from_no_padding(causal):
    (together,), lengths = stack("gated_pass", 1, causal), (9, 4, 7)
    apart, x = copy.deepcopy(together.train()), torch.randn(3, 9, D)
    together.observed = True
    together(x, mask=torch.arange(9) < torch.tensor(lengths)[:, None, None, None])
    for sample, length in zip(x, lengths, strict=True):
        apart(sample[None, :length])
    for block in (together, apart):
        block.after_step(torch.tensor(2.0))
    assert_close(together.usual_passed, apart.usual_passed)
    assert_close(together.metrics["passed"], apart.usual_passed)
    assert 0 < apart.usual_passed.mean() < 1, "the example shows no choice"


@pytest.mark.parametrize("causal", [False, True])
def test_integrated_between_its_extremes(causal):
    first, second = blocks = stack("integrated", 2, causal)
    x, state, plain = torch.randn(2, 7, D), {"whole": True}, []
    for block, bias in zip(blocks, (99.0, -99.0), strict=True):
        block.far.predictor[-1].bias.data.fill_(bias)
        block.near.span[0].bias.data.fill_(99.0)
        plain.append([same_as_multihead(part, causal) for part in (block.near, block.far)])
    assert_close(first(x, state=state), first.merge(torch.cat([part(x) for part in plain[0]], -1)))
    plain[1][1].key_value.load_state_dict(plain[0][1].key_value.state_dict())
    assert_close(
        second(x, state=state), second.merge(torch.cat([part(x) for part in plain[1]], -1))
    )
    second.near.span[0].bias.data.fill_(-99.0)
    second.near.ramp = 1
    assert_close(second.near(x), second.near.merge(second.near.project(x, None, None)[2]))


@pytest.mark.parametrize("name", CONNECTED)
def test_a_model_connects_its_layers_in_training_too(name):
    rooms = {
        "frontend": "tokens",
        "attention": name,
        "rotary": "rope",
        "norm": "layernorm",
        "feedforward": "gelu",
    }
    config = {room: {"name": part} for room, part in rooms.items()} | {
        "layer": {"name": "prenorm", "dropout": 0.0}
    }
    config |= {"task": {"name": "lm"}, "model": {"d_model": D, "n_heads": H, "n_layers": 2}}
    model, tokens = build_model(config, 11).eval(), torch.randint(11, (2, 9))
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    state = {"whole": True}
    whole, _ = model(tokens)
    assert_close(model(tokens, state=state)[0], whole)
    assert not any(isinstance(key, torch.nn.Module) for key in state), (
        "a whole pass keeps what only decoding needs"
    )
    assert_close(model(tokens, state={})[0], whole)
    model.connects_layers = False
    assert not torch.allclose(model(tokens)[0], whole, atol=1e-3)


@pytest.mark.parametrize("causal", [False, True])
def test_worm_joins_its_layers_by_a_running_mean(causal):
    blocks, x, state = stack("worm", 2, causal), torch.randn(2, 7, D), {"whole": True}
    working, inputs = blocks[0].first, x
    for block in blocks:
        pooled = (
            inputs.cumsum(1) / torch.arange(1, 8)[:, None]
            if causal
            else inputs.mean(1, keepdim=True)
        )
        keep = block.keep(pooled).sigmoid()
        working = keep * working + (1 - keep) * pooled
        z = inputs + block.read(working)
        expected = block.merge(torch.cat((block.near(z), block.axon(z)), -1))
        y = block(inputs, state=state)
        assert_close(y, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
        inputs = inputs + y
