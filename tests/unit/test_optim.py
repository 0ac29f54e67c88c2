import math
import pickle
from functools import partial

import jaxtyping
import pytest
import torch
from reference.clip import plain_clip
from reference.walk import close, gradients, groups, tensors

from famx.contracts import applicable, contracts
from famx.monitoring.metrics import to_host
from famx.nn.clip import clip_by_unit_norm
from famx.notation import UserError
from famx.optim import (
    FAM,
    SGD,
    AdamW,
    EMANesterov,
    EmaSGD,
    FAMAdamW,
    FAMBandwise,
    FAMMaxFactor,
    FAMPublished,
    Lookahead,
    MaxFactor,
    Muon,
    SimpleFAM,
    parameter_groups,
)
from famx.registry import build, get, names


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("law", contracts("optim"))
@pytest.mark.parametrize("name", names("optim"))
def test_keeps_the_laws(name, law):
    part = get("optim", name)
    if law in applicable("optim", part):
        contracts("optim")[law](part)


def test_ema_sgd_is_sgd_of_a_shorter_step():
    params, others = tensors(), tensors()
    optimizer = EmaSGD(params, lr=0.1, alpha=0.9, weight_decay=0.2, decoupled=False)
    other = torch.optim.SGD(others, lr=0.1, momentum=0.9, dampening=0.9, weight_decay=0.2)
    for i, row in enumerate(gradients(100)):
        for p, q, gradient in zip(params, others, row, strict=True):
            p.grad, q.grad = gradient, gradient.clone() if i else gradient * 0.1 - 0.18 * q
        optimizer.step()
        other.step()
    assert close(params, others)


def test_the_debiased_average_is_the_average_over_the_sum_of_its_weights():
    param, plain = torch.zeros(5), torch.zeros(5)
    optimizer = EmaSGD([param], lr=0.1, alpha=0.7, debias=True)
    average = torch.zeros(5)
    for t in range(1, 20):
        param.grad = torch.randn(5)
        average = 0.7 * average + 0.3 * param.grad
        plain -= 0.1 * average / (1 - 0.7**t)
        optimizer.step()
    assert torch.allclose(param, plain, atol=1e-6)


@pytest.mark.parametrize(
    "name", [name for name in names("optim") if hasattr(get("optim", name), "usual")]
)
def test_a_first_step_that_is_cancelled_leaves_the_next_one_as_the_first(name):
    options = {"debias": True} if name in ("ema_sgd", "fam") else {}
    params = [torch.nn.Parameter(torch.ones(4, 3)) for _ in range(2)]
    for i, param in enumerate(params):
        optimizer = build("optim", {"name": name, **options}, params=[param])
        for gradient in [torch.nan] * i + [1.0]:
            param.grad = torch.full((4, 3), gradient)
            optimizer.step()
    assert torch.equal(*params) and params[0].isfinite().all() and (params[0] < 1).all()


def test_who_says_that_all_is_finite_is_believed_for_one_step():
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = EmaSGD([param], lr=0.1)
    optimizer.found_inf = torch.ones(())
    optimizer.step()  # there is no gradient
    param.grad = torch.ones(3)
    optimizer.step()
    assert (param < 1).all() and optimizer.skipped == 0
    around = Lookahead([param])
    with pytest.raises(AttributeError, match="is told by no found_inf"):
        around.found_inf = torch.ones(())


def test_a_momentum_is_shown_where_gradients_are_averaged():
    params = [torch.nn.Parameter(torch.randn(40, 30)), torch.nn.Parameter(torch.randn(30))]
    for name, wanted in (("maxfactor", [0.0, 0.0]), ("fam_maxfactor", [0.9, 0.0])):
        optimizer = build("optim", {"name": name}, params=params)
        optimizer.observed = True
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()
        assert optimizer.metrics["momentum"].tolist() == pytest.approx(wanted)


def test_decay_shrinks_what_gets_no_push():
    param = torch.ones(5)
    param.grad = torch.zeros(5)
    FAM([param], lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(param, torch.full((5,), 0.95))


class Block(torch.nn.Module):
    kind = "attention"

    def __init__(self):
        super().__init__()
        self.project, self.norm = torch.nn.Linear(8, 8), torch.nn.LayerNorm(8)


def test_groups_follow_the_owner_of_a_parameter():
    model = torch.nn.ModuleDict(
        {
            "layer_conv": torch.nn.Conv1d(8, 8, 3),
            "attention_table": torch.nn.Embedding(9, 8),
            "block": Block(),
            "mha": torch.nn.MultiheadAttention(8, 2),
            "embed": torch.nn.Linear(8, 9),
            "frozen": torch.nn.Linear(8, 8).requires_grad_(False),
        }
    )
    model["embed"].weight = model["attention_table"].weight
    found = {group["kind"]: group for group in parameter_groups(model, lr=1.0, weight_decay=0.1)}
    names = {id(p): name for name, p in model.named_parameters()}
    owned = {kind: {names[id(p)] for p in group["params"]} for kind, group in found.items()}
    assert owned == {
        "conv": {"layer_conv.weight"},
        "embedding": {"attention_table.weight"},
        "attention": {"block.project.weight", "mha.in_proj_weight", "mha.out_proj.weight"},
        "norm": {name for name in names.values() if "bias" in name or "norm" in name}
        - {"frozen.bias"},
    }
    assert found["embedding"]["lr"] == 0.8 and found["conv"]["lr"] == 1.0
    assert [round(found[kind]["weight_decay"], 9) for kind in owned] == [0.1, 0.1, 0.15, 0.0]
    assert (
        "lr" not in parameter_groups(model)[0]
        and parameter_groups(model, alpha=0.5)[0]["alpha"] == 0.5
    )


def test_a_kind_may_have_settings_of_its_own():
    model = torch.nn.Sequential(
        torch.nn.Conv1d(2, 2, 3), torch.nn.Embedding(3, 2), torch.nn.Linear(2, 3)
    )
    own = {
        "conv": {"alpha": 0.5, "n_bands": None},
        "embedding": {"lr_scale": 0.1, "decay_scale": 0.0},
    }
    groups = {
        g["kind"]: g
        for g in parameter_groups(model, lr=1.0, weight_decay=0.1, kinds=own, alpha=0.7)
    }
    assert [groups[kind]["alpha"] for kind in ("conv", "embedding", "other")] == [0.5, 0.7, 0.7]
    assert groups["conv"]["n_bands"] == 10 and groups["conv"]["lr"] == 1.0
    assert (groups["embedding"]["lr"], groups["embedding"]["weight_decay"]) == (0.1, 0.0)
    with pytest.raises(UserError, match=r"kinds\.conv\.alpha=much must be a number"):
        parameter_groups(model, kinds={"conv": {"alpha": "much"}})


@pytest.mark.parametrize("part", [FAM, SimpleFAM, FAMPublished, EmaSGD, FAMAdamW, MaxFactor])
def test_refusals_are_sentences(part):
    with pytest.raises(ValueError, match=r"alpha=1.5 is not in \[0, 1\)"):
        part([{"params": [torch.ones(3)], "alpha": 1.5}])
    for lr in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"lr={lr} must be a number, at least 0 and finite"):
            part([torch.ones(3)], lr=lr)
    with pytest.raises(ValueError, match=r"lr='0\.1' must be a number"):
        part([{"params": [torch.ones(3)], "lr": "0.1"}])
    with pytest.raises(UserError, match="kind=attn is none; did you mean attention"):
        part([{"params": [torch.ones(3)], "kind": "attn"}])
    with pytest.raises(ValueError, match=r"n_bands=2\.5 must be a whole number of at least 1"):
        part([{"params": [torch.ones(3)], "n_bands": 2.5}])
    with pytest.raises(ValueError, match="complex64"):
        part([torch.ones(3, dtype=torch.complex64)])
    with pytest.raises(UserError, match="give all groups at the start"):
        part([torch.ones(3)]).add_param_group({"params": [torch.ones(3)]})
    with pytest.raises(UserError, match="the state is not of this"):
        part([torch.ones(3)]).load_state_dict(torch.optim.SGD([torch.ones(3)]).state_dict())


def test_another_rule_takes_its_own_hyperparameters():
    rule = partial(build, "momentum", {"name": "constant", "beta": 0.5})
    optimizer = FAM([torch.ones(3)], momentum=rule)
    assert optimizer.rule.base.tolist() == [0.5]
    with pytest.raises(UserError, match=r"beta=0.5 is for momentum fam"):
        FAM([torch.ones(3)], momentum=rule, beta=0.5)
    with pytest.raises(UserError, match="measures no spectrum"):
        FAM(
            [torch.ones(3)],
            momentum=rule,
            spectrum=partial(build, "spectrum", {"name": "temporal"}),
        )
    with pytest.raises(UserError, match="one momentum for all tensors"):
        SGD([torch.ones(3)], momentum=rule)
    with pytest.raises(UserError, match="one momentum for all tensors"):
        AdamW([torch.ones(3)], spectrum=rule)
    shuffled = FAM([torch.ones(300)], spectrum=partial(build, "spectrum", {"name": "shuffled"}))
    assert type(shuffled.rule.spectrum).__name__ == "Shuffled"


def test_watching_shows_the_choice():
    params = tensors()
    optimizer = FAM(groups(params), lr=0.1, fam_start_step=40)
    optimizer.observed = True
    for row in gradients(60):
        for p, gradient in zip(params, row, strict=True):
            p.grad = gradient
        optimizer.step()
    shown = to_host(optim=optimizer)
    assert shown["optim/momentum"].shape == (5,) and shown["optim/bands"].shape == (5, 12)
    assert {"optim/momentum/conv", "optim/bands/conv", "optim/fired", "optim/skipped"} <= set(shown)
    assert 0 < shown["optim/fired"] < 1


def test_the_clip_bounds_each_unit_by_its_own_weights():
    matrix = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0]]))
    matrix.grad = torch.tensor([[0.03, 0.04], [6.0, 8.0], [0.0, 1.0]])
    kernel = torch.nn.Parameter(torch.ones(2, 3, 2, 2))
    kernel.grad = torch.ones(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    scalar, bias = torch.nn.Parameter(torch.tensor(2.0)), torch.nn.Parameter(torch.zeros(4))
    scalar.grad, bias.grad = torch.tensor(-8.0), torch.zeros(4)
    whole = torch.cat([p.grad.flatten() for p in (matrix, kernel, scalar, bias)]).norm()
    norms = clip_by_unit_norm(
        [matrix, kernel, scalar, bias, torch.nn.Parameter(torch.ones(3))], 0.1
    )
    assert norms.norm() == whole and norms[1] == 24**0.5 and norms[4] == 0
    smallest = 0.1 * 1e-3 * 2**0.5
    torch.testing.assert_close(
        matrix.grad, torch.tensor([[0.03, 0.04], [0.3, 0.4], [0.0, smallest]])
    )
    torch.testing.assert_close(kernel.grad, torch.full((2, 3, 2, 2), 0.1))
    assert scalar.grad == -0.2 * torch.ones(()) and not bias.grad.any()


def test_the_clip_equals_its_plain_form():
    generator = torch.Generator().manual_seed(0)
    shapes = [(), (7,), (5, 4), (6, 3, 2), (4, 3, 5, 2), (9,), (), (3, 8), (1, 6)]
    params = [torch.randn(shape, generator=generator) for shape in shapes]
    params[2], params[5] = params[2].bfloat16(), params[5].double()
    params[4] = params[4].contiguous(memory_format=torch.channels_last)
    params[7][1] = 0.0
    for spread in (0.1, 10.0):
        for i, p in enumerate(params):
            p.grad = (
                (spread * torch.randn(p.shape, generator=generator)).to(p.dtype) if i != 3 else None
            )
        params[7].grad[2] = 0.0
        expected, lengths = plain_clip(params, 0.5)
        norms = clip_by_unit_norm(params, 0.5)
        torch.testing.assert_close(norms, torch.tensor(lengths, dtype=norms.dtype))
        for p, gradient in zip(params, expected, strict=True):
            assert (p.grad is None) == (gradient is None)
            if gradient is not None:
                torch.testing.assert_close(p.grad, gradient.to(p.dtype))


def test_what_is_not_finite_is_clipped_in_its_own_unit_alone_and_told():
    params = [torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(3))]
    params[0].grad, params[1].grad = (
        torch.tensor([[torch.nan, 0.0, 1.0], [0.0, 0.0, 4.0]]),
        torch.ones(3),
    )
    norms = clip_by_unit_norm(params, 0.1)
    assert norms[0].isnan() and norms[1] == 3**0.5
    torch.testing.assert_close(params[0].grad[1], torch.tensor([0.0, 0.0, 0.1 * 3**0.5]))
    assert params[0].grad[0].isnan().tolist() == [True, False, False]


@pytest.mark.parametrize("name", names("optim"))
def test_a_pickled_one_goes_on_alike(name):
    params = [torch.nn.Parameter(torch.ones(20, 30)), torch.nn.Parameter(torch.ones(30))]
    optimizer = build("optim", {"name": name}, params=params)
    for _ in range(2):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
        other, copies = pickle.loads(pickle.dumps((optimizer, params)))
    for p, copied in zip(params, copies, strict=True):
        copied.grad = p.grad
    optimizer.step()
    other.step()
    assert all(map(torch.equal, params, copies))


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0)])
@pytest.mark.parametrize("part", [FAM, FAMAdamW, FAMBandwise, FAMMaxFactor, MaxFactor, AdamW])
def test_tensors_without_entries_are_passed_over(part, shape):
    params = [torch.nn.Parameter(torch.ones(shape)), torch.nn.Parameter(torch.ones(3))]
    optimizer = part(params)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert (params[1] < 1).all()
    optimizer.load_state_dict(optimizer.state_dict())


def test_a_matrix_whose_squares_are_too_large_is_left_as_it_is():
    for part in (MaxFactor, partial(MaxFactor, full_matrix=True)):
        matrix, vector = params = [
            torch.nn.Parameter(torch.ones(*shape)) for shape in ((20, 30), (5,))
        ]
        optimizer = part(params)
        for size in (1.0, 1e20, 1.0):
            before = matrix.detach().clone()
            for p in params:
                p.grad = torch.full_like(p, size)
            optimizer.step()
            assert (
                torch.equal(before, matrix) == (size > 1)
                and matrix.isfinite().all()
                and vector.isfinite().all()
            )


@pytest.mark.parametrize(
    "part",
    [
        AdamW,
        FAM,
        FAMAdamW,
        FAMMaxFactor,
        MaxFactor,
        partial(Lookahead, k=1),
        partial(EMANesterov, start_step=0),
    ],
)
def test_a_state_of_single_precision_goes_on_in_half(part):
    whole, half = (
        torch.nn.Parameter(torch.ones(20, 30, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    )
    optimizer, other = part([whole], lr=0.01), part([half], lr=0.01)
    for p, taker in ((whole, optimizer), (half, other)):
        p.grad = torch.ones_like(p)
        taker.step()
    dtypes = {name: value.dtype for name, value in other.state[half].items()}
    other.load_state_dict(optimizer.state_dict())
    assert {name: value.dtype for name, value in other.state[half].items()} == dtypes
    other.step()
    assert half.isfinite().all()


def test_a_name_is_no_factory(monkeypatch):
    monkeypatch.setattr(
        jaxtyping.config, "jaxtyping_disable", True
    )  # whose own refusal comes before
    with pytest.raises(UserError, match="momentum='fam' is no factory"):
        FAM([torch.ones(3)], momentum="fam")


def test_wrapped_ones_refuse_in_a_sentence():
    with pytest.raises(UserError, match="give all groups at the start"):
        Muon([torch.ones(3, 3)]).add_param_group({"params": [torch.ones(3)]})
    with pytest.raises(ValueError, match=r"alpha=1.5 must be in \[0, 1\)"):
        Muon([torch.ones(3, 3)], alpha=1.5)
    for part in (AdamW, Muon, Lookahead):
        with pytest.raises(ValueError, match="complex64"):
            part([torch.ones(3, dtype=torch.complex64)])


def test_kinds_that_would_change_nothing_are_refused():
    model = torch.nn.Linear(3, 3)
    for kinds, told in (
        ({"convv": {"alpha": 0.5}}, "no such kind; did you mean conv"),
        ({"conv": {"alpa": 0.5}}, "no such setting; did you mean alpha"),
        ({"conv": {"alpha": math.nan}}, "kinds.conv.alpha=nan must be finite"),
    ):
        with pytest.raises(UserError, match=told):
            parameter_groups(model, kinds=kinds)
    with pytest.raises(UserError, match=r"lr=-1\.0 must be at least 0"):
        parameter_groups(model, lr=-1.0)
    with pytest.raises(UserError, match="a LazyLinear has no shape yet"):
        parameter_groups(torch.nn.LazyLinear(3))


def test_a_kind_of_some_other_meaning_loses_no_parameter():
    class Head(torch.nn.Linear):
        kind = "classifier"

    assert {group["kind"] for group in parameter_groups(Head(3, 3))} == {"norm", "other"}


def test_a_rule_that_chooses_what_is_no_momentum_is_refused():
    for chosen, told in ((1.2, r"gives 1\.2"), (math.nan, "gives nan")):
        rule = partial(build, "momentum", {"name": "constant"})
        optimizer = FAM([p := torch.nn.Parameter(torch.ones(3))], momentum=rule)
        optimizer.rule.base = torch.full((1,), chosen)
        p.grad = torch.ones(3)
        with pytest.raises(
            UserError, match=rf"momentum Constant {told}\d*, a coefficient must be in \[0, 1\)"
        ):
            optimizer.step()
