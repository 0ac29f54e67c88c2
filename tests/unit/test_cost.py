import pytest
import torch

from famx.analysis import cost
from famx.analysis.cost import Sizes, build_alone, example_input, flops, peak
from famx.notation import UserError
from famx.parts import show
from famx.registry import names

SIZES = Sizes(d_model=128, n_heads=4, t=64)
D, T = SIZES.d_model, SIZES.t
X = example_input("attention", SIZES)


def counted(name, room="attention"):
    return flops(build_alone(room, name, SIZES).eval(), example_input(room, SIZES))


def test_flops_are_those_of_the_products():
    assert counted("multihead") == 8 * D * D + 4 * T * D
    assert counted("gelu", "feedforward") == 16 * D * D
    assert counted("prenorm", "layer") == counted("multihead") + counted("gelu", "feedforward")
    assert counted("rope", "rotary") == 0


def set_nodes(axon, on):
    for node in axon.nodes:
        node.importance.bias.fill_(99.0 if on else -99.0)
    axon.policy[-1].bias.copy_(torch.tensor([99.0, 0.0, 0.0]))


def set_update(far, on):
    far.predictor[-1].bias.fill_(99.0 if on else -99.0)


def set_visits(layer, on):
    layer.gate[-1].bias.fill_(99.0 if on else -99.0)


# how all gates are set, and what is not computed where they are off
GATED = {
    ("attention", "myelinated"): (set_nodes, lambda axon: flops(axon, X) - flops(axon.mlp, X)),
    ("attention", "worm"): (
        lambda worm, on: set_nodes(worm.axon, on),
        lambda worm: flops(worm.axon, X) - flops(worm.axon.mlp, X),
    ),
    ("attention", "content_update"): (set_update, lambda block: flops(block.key_value, X)),
    ("attention", "integrated"): (
        lambda block, on: set_update(block.far, on),
        lambda block: flops(block.far.key_value, X),
    ),
    ("attention", "gated_pass"): (
        lambda block, on: block.threshold.fill_(-99.0 if on else 99.0),
        lambda block: counted("multihead"),
    ),
    ("attention", "focus"): (
        lambda block, on: setattr(block, "threshold", 0.0 if on else 99.0),
        lambda block: 4 * T * D * (block.steps - 1),
    ),
    ("layer", "skip"): (set_visits, lambda layer: counted("prenorm", "layer")),
}


@pytest.mark.parametrize(("room", "name"), GATED)
def test_expected_flops_agree_with_a_counter_with_all_gates_on_and_all_off(room, name, monkeypatch):
    block, (set_gates, skipped), expected = (
        build_alone(room, name, SIZES).eval(),
        GATED[room, name],
        [],
    )
    for on in (True, False):
        with torch.no_grad():
            set_gates(block, on)
        expected.append(flops(block, X))
    monkeypatch.setattr(
        cost.observe, "watch", lambda *_: None
    )  # nobody tells: all that is computed is counted
    for module in block.modules():
        module.metrics = {}
    whole = flops(block, X)
    assert expected == pytest.approx([whole, whole - skipped(block)], abs=0.05 * whole)
    assert expected[1] < 0.95 * expected[0]


def test_a_skip_leaves_the_share_of_its_layer_that_is_visited():
    layer, x = build_alone("layer", "skip", SIZES).eval(), torch.ones(2, T, D)
    layer.gate, x[1] = torch.nn.Linear(D, 1), -1
    torch.nn.init.ones_(layer.gate.weight)
    assert flops(layer, x) == pytest.approx(counted("prenorm", "layer"), rel=0.01)
    layer.attention = build_alone("attention", "myelinated", SIZES).eval()
    set_nodes(layer.attention.requires_grad_(False), False)
    shut = layer.attention.mlp
    assert flops(layer, X[:1].abs()) == pytest.approx(
        flops(shut, X) + counted("gelu", "feedforward"), rel=0.01
    )


def test_a_peak_is_of_what_is_held_at_once():
    x = torch.randn(1000)

    def call():
        y = (x.exp() + x.exp()).exp_()
        del y
        return x.exp()

    assert peak(call) == 3 * 4000


def test_the_memory_of_a_pass_holds_all_gradients_however_often_it_ran():
    part, x = (
        torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(9))),
        torch.randn(1, 2, 256),
    )
    gradients = 4 * (sum(p.numel() for p in part.parameters()) + x.numel())
    for measured in cost.profile_pair(part, part, x.requires_grad_()):
        assert gradients <= measured.memory < 1.1 * gradients


@pytest.mark.parametrize("room", cost.BASELINE)
def test_each_part_of_a_room_is_measured_or_told_why_not(room, monkeypatch, capsys):
    monkeypatch.setattr(cost, "LENGTHS", (8, 16))
    monkeypatch.setattr(cost, "ROUNDS", 1)
    assert show([room, "--measure", "--d_model", "30", "--n_heads", "3", "--t", "8"]) == 0
    title, head, *rows = capsys.readouterr().out.splitlines()
    assert "d_model=30, n_heads=3, t=8" in title and head.split()[0] == "parameters"
    assert [row.split()[0] for row in rows] == [
        cost.BASELINE[room],
        *(name for name in names(room) if name != cost.BASELINE[room]),
    ]
    assert "t^" in rows[0] and all("t^" in row or f"{room}=" in row for row in rows)


def test_what_cannot_be_measured_is_refused():
    for words, told in (
        (["optim"], "the parts of the room optim are not measured; choose from attention"),
        (["atention"], "did you mean attention"),
        (
            ["attention", "--d_model", "15", "--n_heads", "4"],
            "d_model=15 is not a multiple of n_heads=4",
        ),
        (["attention", "--n_heads", "0"], "must be at least"),
    ):
        with pytest.raises(UserError, match=told):
            show([*words, "--measure"])
