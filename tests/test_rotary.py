from math import cos, sin

import pytest
import torch
from torch.testing import assert_close

from famx.laws import kept, laws
from famx.notation import UserError
from famx.registry import PARTS, build, names


@pytest.mark.parametrize(
    ("name", "law"), [(name, law) for name in names("rotary") for law in kept("rotary", PARTS["rotary"][name])]
)
def test_law(name, law):
    laws("rotary")[law](PARTS["rotary"][name])


@pytest.mark.parametrize("learned", [False, True])
def test_rope_turns_pairs_by_geometric_frequencies(learned):
    rope = build("rotary", {"name": "rope", "theta": 100.0, "learned": learned}, head_dim=5)
    x = torch.randn(1, 1, 4, 5)
    y = rope(x, 7)
    for t in range(4):
        for pair, frequency in enumerate((1.0, 0.1)):
            angle = (7 + t) * frequency
            a, b = x[0, 0, t, 2 * pair : 2 * pair + 2].tolist()
            expected = [a * cos(angle) - b * sin(angle), a * sin(angle) + b * cos(angle)]
            assert_close(y[0, 0, t, 2 * pair : 2 * pair + 2], torch.tensor(expected))
    assert torch.equal(y[..., 4], x[..., 4])


def test_rescaled_rope_keeps_the_fastest_pair_and_stretches_the_slowest():
    plain, wide = (build("rotary", {"name": "rope", "rescale": s}, head_dim=8).frequencies for s in (1.0, 4.0))
    assert wide[0] == plain[0] == 1.0
    assert wide[-1] * 4 == pytest.approx(plain[-1])
    assert build("rotary", {"name": "rope", "rescale": 4.0}, head_dim=2).frequencies == (1.0,)


@pytest.mark.parametrize("law", laws("rotary"))
def test_learned_rope_keeps_the_laws_too(law):
    class Learned(PARTS["rotary"]["rope"]):
        def __init__(self, head_dim: int):
            super().__init__(head_dim, learned=True)

    laws("rotary")[law](Learned)


def test_a_table_made_in_inference_serves_training():
    rope = build("rotary", {"name": "rope", "theta": 123.0}, head_dim=4)
    with torch.inference_mode():
        rope(torch.randn(1, 1, 3, 4))
    rope(torch.randn(1, 1, 3, 4, requires_grad=True)).sum().backward()


def test_rope_refuses_a_single_channel():
    with pytest.raises(UserError, match="head_dim=1 must be at least 2"):
        build("rotary", {"name": "rope"}, head_dim=1)
