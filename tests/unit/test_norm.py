import pytest
import torch
from torch.testing import assert_close

from famx.contracts import applicable, contracts
from famx.registry import PARTS, build, names


@pytest.mark.parametrize(
    ("name", "law"),
    [(name, law) for name in names("norm") for law in applicable("norm", PARTS["norm"][name])],
)
def test_law(name, law):
    contracts("norm")[law](PARTS["norm"][name])


def test_they_equal_their_formulas():
    x = torch.randn(2, 5, 6)
    rms = build("norm", {"name": "rmsnorm", "eps": 0.5}, d_model=6)
    assert_close(rms(x), x / (x.square().mean(-1, keepdim=True) + 0.5).sqrt())
    layer = build("norm", {"name": "layernorm", "eps": 0.5}, d_model=6)
    centred = x - x.mean(-1, keepdim=True)
    assert_close(layer(x), centred / (centred.square().mean(-1, keepdim=True) + 0.5).sqrt())
