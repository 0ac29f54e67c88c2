import pytest
import torch
from reference.myelinated import skipping
from reference.relative_force import paired
from torch.testing import assert_close

from famx.laws import kept, laws
from famx.laws.attention import D, H
from famx.model import build_model
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


def same_as_multihead(block, causal):
    plain = build_block("multihead", causal)
    plain.load_state_dict({name: p for name, p in block.state_dict().items() if name in plain.state_dict()})
    return plain


def stack(name, n=3, causal=True):
    blocks = [build_block(name, causal).eval() for _ in range(n)]
    with torch.no_grad():
        for p in torch.nn.ModuleList(blocks).parameters():
            p += 0.3 * torch.randn_like(p)
    return blocks


def through(blocks, x, memory=None, mask=None, state=None):
    for block in blocks:
        x = x + block(x, memory, mask, state)
    return x


CONNECTED = [name for name in names("attention") if getattr(PARTS["attention"][name], "connected", False)]


@pytest.mark.parametrize("name", CONNECTED)
def test_connected_layers_decode_as_they_pass_whole(name):
    blocks, x = stack(name), torch.randn(2, 7, D)
    padding = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    padding[1, ..., :2] = False
    for memory, mask in ((None, None), (None, padding), (torch.randn(2, 5, D), None)):
        whole, state = through(blocks, x, memory, mask, {"whole": True}), {}
        steps = [
            through(blocks, x[:, t : t + 2], memory, None if mask is None else mask[..., : t + 2], state)
            for t in range(0, 7, 2)
        ]
        assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(through(blocks, x, state={"whole": True}), through(blocks, x), atol=1e-3)


@pytest.mark.parametrize("name", CONNECTED)
def test_connected_layers_keep_the_future_and_other_samples_out(name):
    blocks, x = stack(name), torch.randn(2, 7, D)
    other = x.clone()
    other[:, 5:] += 1
    other[1] += 1
    whole, changed = (through(blocks, x, state={"whole": True}) for x in (x, other))
    assert_close(whole[0, :5], changed[0, :5])


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
    assert not torch.allclose(blocks[1](other, state=state), kept(other)), "keys of its own, though none is updated"


@pytest.mark.parametrize("causal", [False, True])
def test_gated_pass_between_its_extremes(causal):
    (block,), x = stack("gated_pass", 1, causal), torch.randn(2, 7, D)
    plain = same_as_multihead(block, causal)
    block.threshold.fill_(-9)
    assert_close(block(x), plain(x))
    block.threshold.fill_(9)
    assert_close(block(x), block.out.bias.expand(2, 7, D))
    block.threshold.copy_(torch.tensor([9.0, -9.0, -9.0, -9.0]))
    plain.out.weight.data[:, : D // H] = 0
    assert_close(block(x), plain(x))


def test_gated_pass_makes_passing_easier_where_it_helped():
    block, x = build_block("gated_pass"), torch.randn(2, 7, D)
    start = block.threshold.clone()
    block.feedback(torch.tensor(2.0))
    assert_close(block.threshold, start, msg="moves without having been trained")
    block(x)
    block.feedback(torch.tensor(2.0))
    assert_close(block.threshold, start, msg="moves though all is as usual")
    block.usual_passed.copy_(torch.tensor([0.5, 1.0, 0.5, 1.0]))
    block(x)
    block.feedback(torch.tensor(1.0))
    assert_close(block.threshold - start, torch.tensor([-0.005, 0.0, -0.005, 0.0]))
    block(x)
    block.feedback(torch.tensor(3.0))
    assert (block.threshold <= start).all() and block.threshold[0] > start[0] - 0.005
    block.eval()(x)
    before = block.threshold.clone()
    block.feedback(torch.tensor(0.0))
    assert_close(block.threshold, before, msg="evaluation moves the thresholds")


@pytest.mark.parametrize("name", CONNECTED)
def test_a_model_connects_its_layers_in_training_too(name):
    rooms = {"frontend": "tokens", "attention": name, "rotary": "rope", "norm": "layernorm", "feedforward": "gelu"}
    config = {room: {"name": part} for room, part in rooms.items()} | {"layer": {"name": "prenorm", "dropout": 0.0}}
    config |= {"task": {"name": "lm"}, "model": {"d_model": D, "n_heads": H, "n_layers": 2}}
    model, tokens = build_model(config, 11).eval(), torch.randint(11, (2, 9))
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    state = {"whole": True}
    whole, _ = model(tokens)
    assert_close(model(tokens, state=state)[0], whole)
    assert not any(isinstance(key, torch.nn.Module) for key in state), "a whole pass keeps what only decoding needs"
    assert_close(model(tokens, state={})[0], whole)
    model.connected = False
    assert not torch.allclose(model(tokens)[0], whole, atol=1e-3)
