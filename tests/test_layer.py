import pytest
import torch
from torch.testing import assert_close

from famx.laws import kept, laws
from famx.layer.base import Dropout
from famx.registry import PARTS, names


@pytest.mark.parametrize(
    ("name", "law"), [(name, law) for name in names("layer") for law in kept("layer", PARTS["layer"][name])]
)
def test_law(name, law):
    laws("layer")[law](PARTS["layer"][name])


def test_dropout_drops_as_many_as_it_says_and_keeps_the_mean():
    dropout, x = Dropout(0.1), torch.ones(1_000_003)
    y = dropout(x)
    dropped = 26 / 256
    assert_close(y.max().item(), 1 / (1 - dropped))
    assert set(y.unique().tolist()) == {0.0, y.max().item()}
    # 5 standard deviations; of each eighth too, since eight are cut from one random word
    for part in (y, *(y[i::8] for i in range(8))):
        spread = (dropped * (1 - dropped) / len(part)) ** 0.5
        assert abs((part == 0).float().mean() - dropped) < 5 * spread


def test_dropout_is_the_identity_in_evaluation_and_at_zero():
    x = torch.randn(3, 5)
    before = torch.get_rng_state()
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_depends_on_the_seed_alone_and_stops_the_same_gradients():
    x = torch.randn(3, 5, 7, requires_grad=True)
    torch.manual_seed(3)
    first = Dropout(0.5)(x)
    torch.manual_seed(3)
    assert torch.equal(first, Dropout(0.5)(x))
    first.sum().backward()
    assert_close(x.grad, 2.0 * (first != 0))
    assert Dropout(0.5)(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("p", [-0.1, 1.0, 0.999])
def test_dropout_of_everything_or_less_than_nothing_is_refused(p):
    with pytest.raises(ValueError, match=f"dropout={p} is not in"):
        Dropout(p)
