import pytest
import torch

from famx import measure
from famx.measure import Sizes, built, flops, peak, signal
from famx.notation import UserError
from famx.parts import show
from famx.registry import names

SIZES = Sizes(d_model=128, n_heads=4, t=64)
D, T = SIZES.d_model, SIZES.t


def counted(name, room="attention"):
    return flops(built(room, name, SIZES).eval(), signal(room, SIZES))


def test_flops_are_those_of_the_products():
    assert counted("multihead") == 8 * D * D + 4 * T * D
    assert counted("gelu", "feedforward") == 16 * D * D
    assert counted("prenorm", "layer") == counted("multihead") + counted("gelu", "feedforward")
    assert counted("rope", "rotary") == 0


@pytest.mark.parametrize("name", ["myelinated", "worm"])
def test_expected_flops_agree_with_a_counter_with_all_gates_on_and_all_off(name, monkeypatch):
    block, x = built("attention", name, SIZES).eval(), signal("attention", SIZES)
    axon, expected = getattr(block, "axon", block), []
    for bias in (99.0, -99.0):
        with torch.no_grad():
            for node in axon.nodes:
                node.importance.bias.fill_(bias)
            axon.policy[-1].bias.copy_(torch.tensor([99.0, 0.0, 0.0]))
        expected.append(flops(block, x))
    axon.metrics = {}
    monkeypatch.setattr(axon, "account", lambda *_: None)  # it tells nothing: all that is computed is counted
    whole, skipped = flops(block, x), flops(axon, x) - flops(axon.mlp, x)
    assert expected == pytest.approx([whole, whole - skipped], rel=0.05)


def test_a_peak_is_of_what_is_held_at_once():
    x = torch.randn(1000)

    def call():
        y = (x.exp() + x.exp()).exp_()
        del y
        return x.exp()

    assert peak(call) == 3 * 4000


@pytest.mark.parametrize("room", measure.USUAL)
def test_each_part_of_a_room_is_measured_or_told_why_not(room, monkeypatch, capsys):
    monkeypatch.setattr(measure, "LENGTHS", (8, 16))
    monkeypatch.setattr(measure, "ROUNDS", 1)
    assert show([room, "--measure", "--d_model", "30", "--n_heads", "3", "--t", "8"]) == 0
    title, head, *rows = capsys.readouterr().out.splitlines()
    assert "d_model=30, n_heads=3, t=8" in title and head.split()[0] == "parameters"
    assert [row.split()[0] for row in rows] == [
        measure.USUAL[room],
        *(name for name in names(room) if name != measure.USUAL[room]),
    ]
    assert "t^" in rows[0] and all("t^" in row or f"{room}=" in row for row in rows)


def test_what_cannot_be_measured_is_refused():
    for words, told in (
        (["optim"], "the parts of the room optim are not measured; choose from attention"),
        (["atention"], "did you mean attention"),
        (["attention", "--d_model", "15", "--n_heads", "4"], "d_model=15 is not a multiple of n_heads=4"),
        (["attention", "--n_heads", "0"], "must be at least"),
    ):
        with pytest.raises(UserError, match=told):
            show([*words, "--measure"])
