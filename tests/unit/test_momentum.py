from functools import partial

import pytest
import torch

from famx.contracts import applicable, contracts
from famx.momentum.fam import Fam
from famx.momentum.fam_published import FamPublished
from famx.momentum.fsgdm import Fsgdm
from famx.momentum.innovation import Innovation
from famx.momentum.kalman import Kalman
from famx.momentum.random import Random
from famx.momentum.shuffled_fam import ShuffledFam
from famx.notation import TensorInfo
from famx.registry import build, get, names


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("law", contracts("momentum"))
@pytest.mark.parametrize("name", names("momentum"))
def test_keeps_the_laws(name, law):
    part = get("momentum", name)
    if law in applicable("momentum", part):
        contracts("momentum")[law](part)


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
    assert chosen(lambda t: 2.0).tolist() == pytest.approx(
        [0.855, 0.855, 0.855, 0.8265, 0.9025, 0.9215]
    )
    assert chosen(lambda t: 2 * (-1.0) ** t).tolist() == pytest.approx([0.98] * 6)


def test_nothing_moves_before_the_start_nor_in_small_tensors():
    assert torch.equal(chosen(lambda t: 2.0, steps=101), base())
    assert torch.equal(chosen(lambda t: 2.0, min_size=1200), base())


def test_what_few_samples_show_of_white_noise_moves_nothing_unless_chance_is_left_out():
    few = {"spectrum": partial(build, "spectrum", {"name": "temporal", "coordinates": 2})}
    noises = [lambda: iter(lambda: torch.randn(40, 30), None)] * 40
    assert by(Fam, noises, steps=110, **few) == pytest.approx([0.9] * 40)
    assert len({round(a, 3) for a in by(Fam, noises, steps=110, sigmas=0.0, **few)}) > 1


def test_rows_that_get_no_gradient_say_nothing_of_chance():
    def few():
        while True:
            gradient = torch.zeros(1000, 64)
            gradient[:20] = torch.randn(20, 64)
            yield gradient

    tensors, sources = [TensorInfo((1000, 64), base=0.9)] * 12, [few() for _ in range(12)]
    rule, found = Fam(tensors), []
    for t in range(1, 300):
        found.append(rule([next(source) for source in sources], t))
    assert torch.stack(found).unique().tolist() == pytest.approx([0.9])


def test_as_published_white_noise_moves_every_tensor():
    rule = FamPublished(KINDS)
    for t in range(1, 120):
        coefficients = rule([torch.randn(info.shape) for info in KINDS], t)
    assert coefficients.tolist()[4] == pytest.approx(0.98)
    assert coefficients.tolist()[:3] == pytest.approx([0.95, 0.95, 0.95])


def by(part, signals, steps=400, **hyper):
    """The coefficients after so many steps of gradients, one tensor a signal: a function of a generator."""
    tensors = [TensorInfo((40, 30), base=0.9) for _ in signals]
    rule, generators = part(tensors, **hyper), [signal() for signal in signals]
    for t in range(1, steps):
        chosen = rule([next(generator) for generator in generators], t)
    return chosen.tolist()


def drifting(share):
    """A random walk whose steps are `share` of the noise it is seen under."""
    level = torch.zeros(40, 30)
    while True:
        level = level + share * torch.randn(40, 30)
        yield level + torch.randn(40, 30)


def test_the_kalman_gain_is_that_of_the_walk_and_its_noise():
    shares = (0.2, 0.5, 1.5)
    found = torch.tensor(
        by(
            Kalman,
            [lambda share=share: drifting(share) for share in shares for _ in range(8)],
            low=0.0,
        )
    )
    gains = [(((q := share**2) ** 2 + 4 * q) ** 0.5 - q) / 2 for share in shares]
    assert found.view(3, 8).mean(1).tolist() == pytest.approx(
        [1 - gain for gain in gains], abs=0.05
    )
    still = by(Kalman, [lambda: drifting(0.0) for _ in range(8)])
    assert sum(still) / 8 > found[:8].mean()


def test_innovations_lower_the_momentum_of_what_drifts_and_leave_that_of_noise():
    slow, fast, noise = by(
        Innovation, [lambda: drifting(0.1), lambda: drifting(1.0), lambda: drifting(0.0)]
    )
    assert fast < slow < 0.9 and noise == pytest.approx(0.9)


def test_shuffled_fam_makes_the_moves_of_fam_in_other_places():
    kinds = [KINDS[0]._replace(base=0.9)] * 6
    real, placebo = (Fam(kinds, layer_boost=False), ShuffledFam(kinds, layer_boost=False))
    for t in range(1, 200):
        row = [torch.randn(40, 30) + 2 * (-1.0) ** t * (i < 2) for i in range(6)]
        chosen, dealt = real(row, t), placebo(row, t)
    assert sorted(chosen.tolist()) == sorted(dealt.tolist()) and not torch.equal(chosen, dealt)
    assert (placebo.dealt != torch.arange(6)).all()


def test_the_controls_do_not_look_at_gradients():
    silence = [torch.zeros(info.shape) for info in KINDS]
    assert Fsgdm(KINDS, mu=30.0)(silence, 10).tolist() == pytest.approx([0.25] * 6)
    rule = Random(KINDS, low=0.8, high=0.9, every=4)
    draws = [rule(silence, step) for step in range(40)]
    assert all(((draw >= 0.8) & (draw <= 0.9)).all() for draw in draws)
    assert (
        torch.equal(draws[4], draws[7])
        and not torch.equal(draws[4], draws[8])
        and draws[0].unique().numel() == 6
    )


def test_bad_hyperparameters_are_refused():
    with pytest.raises(ValueError, match=r"beta=1.0 is not in \[0, 1\)"):
        Fam(KINDS, beta=1.0)
    with pytest.raises(ValueError, match="n_bands=40 is more than the 17 bins"):
        Fam([TensorInfo((40, 30), n_bands=40)])
