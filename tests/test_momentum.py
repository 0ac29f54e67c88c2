import pytest
import torch

from famx.laws import kept, laws
from famx.momentum.fam import Fam
from famx.momentum.fam_published import FamPublished
from famx.notation import TensorInfo
from famx.registry import get, names


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("law", laws("momentum"))
@pytest.mark.parametrize("name", names("momentum"))
def test_keeps_the_laws(name, law):
    part = get("momentum", name)
    if law in kept("momentum", part):
        laws("momentum")[law](part)


LAYOUTS = {"conv": "log", "attention": "split"}
KINDS = [
    TensorInfo((40, 30), kind, a, n, LAYOUTS.get(kind, "equal"))
    for kind, a, n in (
        *(("other", 0.9, 8), ("norm", 0.9, 4), ("conv", 0.9, 10)),
        *(("attention", 0.92, 12), ("embedding", 0.95, 8), ("other", 0.97, 8)),
    )
]


def chosen(signal, steps=300, tensors=KINDS, **hyper):
    """The coefficients after so many steps of gradients signal(t) under noise."""
    rule = Fam(tensors, **hyper)
    for t in range(1, steps):
        coefficients = rule([torch.randn(info.shape) + signal(t) for info in tensors], t)
    return coefficients


def base(tensors=KINDS):
    return torch.tensor([info.base for info in tensors])


def test_white_noise_leaves_the_base_momentum():
    tensors = KINDS * 8
    assert torch.equal(chosen(lambda t: 0.0, tensors=tensors), base(tensors))


def test_fast_gradients_raise_the_momentum():
    found = chosen(lambda t: 2 * (-1.0) ** t, layer_boost=False).tolist()
    assert found == pytest.approx([0.95, 0.95, 0.95, 0.98, 0.98, 0.97])


def test_slow_gradients_lower_the_momentum_of_attention_alone():
    found = chosen(lambda t: 2.0, layer_boost=False).tolist()
    assert found == pytest.approx([0.9, 0.9, 0.9, 0.87, 0.95, 0.97])


def test_the_layer_boost_follows_the_loudest_band():
    assert chosen(lambda t: 2.0).tolist() == pytest.approx([0.855, 0.855, 0.855, 0.8265, 0.9025, 0.9215])
    assert chosen(lambda t: 2 * (-1.0) ** t).tolist() == pytest.approx([0.98] * 6)


def test_nothing_moves_before_the_start_nor_in_small_tensors():
    assert torch.equal(chosen(lambda t: 2.0, steps=101), base())
    assert torch.equal(chosen(lambda t: 2.0, min_size=1200), base())


def test_as_published_white_noise_moves_every_tensor():
    rule = FamPublished(KINDS)
    for t in range(1, 120):
        coefficients = rule([torch.randn(info.shape) for info in KINDS], t)
    assert coefficients.tolist()[4] == pytest.approx(0.98)
    assert coefficients.tolist()[:3] == pytest.approx([0.95, 0.95, 0.95])


def test_bad_hyperparameters_are_refused():
    with pytest.raises(ValueError, match=r"beta=1.0 is not in \[0, 1\)"):
        Fam(KINDS, beta=1.0)
    with pytest.raises(ValueError, match="n_bands=40 is more than the 17 bins"):
        Fam([TensorInfo((40, 30), n_bands=40)])
