"""Costs of parts are those of what they compute."""

import pytest
import torch
from torch import nn

from famx.analysis import cost
from famx.analysis.cost import Sizes, build_alone, example_input, flops, peak
from famx.notation import UserError
from famx.parts import show
from famx.registry import names

SIZES = Sizes(d_model=128, n_heads=4, t=64)
D = SIZES.d_model
T = SIZES.t
X = example_input("attention", SIZES)


def flops_of(name: str, room: str = "attention") -> float:
    return flops(build_alone(room, name, SIZES).eval(), example_input(room, SIZES))


def set_nodes(axon: nn.Module, is_open: bool) -> None:
    """Opens or closes all nodes of a `myelinated` block, and makes all jumps of one layer."""
    for node in axon.nodes:
        node.importance.bias.fill_(99.0 if is_open else -99.0)
    axon.policy[-1].bias.copy_(torch.tensor([99.0, 0.0, 0.0]))


def set_update(block: nn.Module, is_open: bool) -> None:
    block.predictor[-1].bias.fill_(99.0 if is_open else -99.0)


def set_visits(layer: nn.Module, is_open: bool) -> None:
    layer.gate[-1].bias.fill_(99.0 if is_open else -99.0)


def flops_of_nodes(axon: nn.Module) -> float:
    return flops(axon, X) - flops(axon.mlp, X)


# how all gates of a part are set, and the FLOPs that it skips where they are closed
GATED = {
    ("attention", "myelinated"): (set_nodes, flops_of_nodes),
    ("attention", "worm"): (
        lambda block, is_open: set_nodes(block.axon, is_open),
        lambda block: flops_of_nodes(block.axon),
    ),
    ("attention", "content_update"): (set_update, lambda block: flops(block.key_value, X)),
    ("attention", "integrated"): (
        lambda block, is_open: set_update(block.far, is_open),
        lambda block: flops(block.far.key_value, X),
    ),
    ("attention", "gated_pass"): (
        lambda block, is_open: block.threshold.fill_(-99.0 if is_open else 99.0),
        lambda block: flops_of("multihead"),
    ),
    ("attention", "focus"): (
        lambda block, is_open: setattr(block, "threshold", 0.0 if is_open else 99.0),
        lambda block: 4 * T * D * (block.steps - 1),
    ),
    ("layer", "skip"): (set_visits, lambda layer: flops_of("prenorm", "layer")),
}


def test_flops_are_those_of_the_matrix_products():
    assert flops_of("multihead") == 8 * D * D + 4 * T * D
    assert flops_of("gelu", "feedforward") == 16 * D * D
    assert flops_of("prenorm", "layer") == flops_of("multihead") + flops_of("gelu", "feedforward")
    assert flops_of("rope", "rotary") == 0


@pytest.mark.parametrize(("room", "name"), GATED)
def test_expected_flops_agree_with_a_count_where_all_gates_are_open_or_closed(
    room, name, monkeypatch
):
    part = build_alone(room, name, SIZES).eval()
    set_gates, skipped_flops = GATED[room, name]
    expected_flops = []
    for is_open in (True, False):
        with torch.no_grad():
            set_gates(part, is_open)
        expected_flops.append(flops(part, X))
    # without metrics, everything that is computed is counted
    monkeypatch.setattr(cost, "set_observed", lambda *_: None)
    for module in part.modules():
        module.metrics = {}
    full = flops(part, X)
    when_closed = full - skipped_flops(part)
    assert expected_flops == pytest.approx([full, when_closed], abs=0.05 * full)
    assert expected_flops[1] < 0.95 * expected_flops[0]


def test_a_skip_layer_has_the_flops_of_the_share_that_is_visited():
    layer = build_alone("layer", "skip", SIZES).eval()
    layer.gate = nn.Linear(D, 1)
    nn.init.ones_(layer.gate.weight)
    x = torch.ones(2, T, D)  # the first of two samples visits the layer
    x[1] = -1
    assert flops(layer, x) == pytest.approx(flops_of("prenorm", "layer"), rel=0.01)
    # a block within it that skips as well
    layer.attention = build_alone("attention", "myelinated", SIZES).eval()
    set_nodes(layer.attention.requires_grad_(False), False)
    expected = flops(layer.attention.mlp, X) + flops_of("gelu", "feedforward")
    assert flops(layer, X[:1].abs()) == pytest.approx(expected, rel=0.01)


def test_the_gate_of_a_module_always_runs():
    class Gated(nn.Module):
        """Reports that a quarter of its computation is performed."""

        def __init__(self):
            super().__init__()
            self.observed = False
            self.metrics = {"compute": torch.tensor(0.25)}
            self.gate = nn.Linear(D, 8)
            self.body = nn.Linear(D, D)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.gate(x)
            return self.body(x)

    assert flops(Gated(), X) == 2 * D * 8 + 0.25 * 2 * D * D
    nested = nn.Sequential(Gated(), nn.Linear(D, D))
    assert flops(nested, X) == 2 * D * 8 + 1.25 * 2 * D * D


def test_peak_is_the_most_that_is_allocated_at_once():
    x = torch.randn(1000)

    def call() -> torch.Tensor:
        y = (x.exp() + x.exp()).exp_()
        del y
        return x.exp()

    assert peak(call) == 3 * 4000


def test_memory_includes_all_gradients_also_after_an_earlier_pass():
    part = nn.Sequential(*(nn.Linear(256, 256) for _ in range(9)))
    x = torch.randn(1, 2, 256, requires_grad=True)
    gradients = 4 * (sum(p.numel() for p in part.parameters()) + x.numel())
    for part_cost in cost.profile_pair(part, part, x):
        assert gradients <= part_cost.memory < 1.1 * gradients


def test_functions_are_timed_in_turn_and_take_turns_to_go_first():
    calls = []
    timings = cost.interleaved(
        lambda i: calls.append(("a", i)), lambda i: calls.append(("b", i)), 3
    )
    assert calls == [("b", 0), ("a", 0), ("a", 1), ("b", 1), ("b", 2), ("a", 2)]
    assert [len(seconds) for seconds in timings] == [3, 3]


@pytest.mark.parametrize("room", cost.BASELINE)
def test_each_part_of_a_room_is_measured_or_its_error_is_printed(room, monkeypatch, capsys):
    monkeypatch.setattr(cost, "LENGTHS", (8, 16))
    monkeypatch.setattr(cost, "ROUNDS", 1)
    assert show([room, "--measure", "--d_model", "30", "--n_heads", "3", "--t", "8"]) == 0
    title, headings, *rows = capsys.readouterr().out.splitlines()
    assert "d_model=30, n_heads=3, t=8" in title
    assert headings.split()[0] == "parameters"
    baseline = cost.BASELINE[room]
    others = [name for name in names(room) if name != baseline]
    assert [row.split()[0] for row in rows] == [baseline, *others]
    assert "t^" in rows[0]
    assert all("t^" in row or f"{room}=" in row for row in rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim"], "the parts of the room optim are not measured; choose from attention"),
        (["atention"], "did you mean attention"),
        (
            ["attention", "--d_model", "15", "--n_heads", "4"],
            "d_model=15 is not a multiple of n_heads=4",
        ),
        (["attention", "--n_heads", "0"], "must be at least"),
    ],
)
def test_a_room_or_size_that_cannot_be_measured_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        show([*words, "--measure"])
