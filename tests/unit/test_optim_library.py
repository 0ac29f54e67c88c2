"""famx's optimizers in any PyTorch loop, without its trainer and without Hydra."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from famx.contracts import applicable, contracts
from famx.experiment.build import build_optimizer
from famx.experiment.report import param_group_table
from famx.nn.clip import clip_by_unit_norm
from famx.notation import UserError
from famx.optim import (
    AGC,
    FAM,
    AdamW,
    EMANesterov,
    FAMAdamW,
    Lookahead,
    MaxFactor,
    SimpleFAM,
    parameter_groups,
)
from famx.registry import build, get, names
from famx.schedule import WarmupCosine
from famx.training.trainer import TrainerConfig

PARTS = [FAM, SimpleFAM, MaxFactor, FAMAdamW, AdamW, Lookahead]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(9, 8),
        nn.Conv1d(5, 5, 3),
        nn.Flatten(),
        nn.Linear(30, 30),
        nn.LayerNorm(30),
        nn.Linear(30, 3),
    )


def example():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(9, (32, 5), generator=generator)
    return x, x.sum(1) % 3


def loss_of(model):
    x, y = example()
    return nn.functional.cross_entropy(model(x), y)


def trained(optimizer, model, steps, after=lambda: None):
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        after()
    return loss_of(model).item()


@pytest.mark.parametrize("name", names("optim"))
def test_the_table_of_groups_counts_every_parameter_once_and_has_no_empty_row(name, tmp_path):
    model = network()
    optimizer = build_optimizer({"name": name}, parameter_groups(model))
    shown, (_, *rows) = (
        param_group_table(optimizer, tmp_path),
        (tmp_path / "groups.tsv").read_text().splitlines(),
    )
    counts = [int(row.split("\t")[2]) for row in rows]
    assert len(counts) == shown.row_count and min(counts) > 0
    assert sum(counts) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", names("optim"))
def test_every_part_lowers_the_loss_at_its_default_settings(name):
    model = network()
    optimizer = build_optimizer({"name": name}, parameter_groups(model))
    before = loss_of(model).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss_of(model).backward()
        clip_by_unit_norm(list(model.parameters()), TrainerConfig().clip)
        optimizer.step()
    after = loss_of(model).item()
    assert after < before, f"from {before} to {after}"


@pytest.mark.parametrize("law", contracts("optim"))
@pytest.mark.parametrize("name", ["lookahead", "agc", "ema_nesterov"])
def test_what_is_wrapped_around_one_of_famxs_own_keeps_every_law(name, law):
    class Around(get("optim", name)):
        def __init__(self, params, **options):
            super().__init__(params, base="fam_adamw", **options)

    if (name, law) != ("lookahead", "non_finite"):
        contracts("optim")[law](Around)


def test_lookahead_waits_where_its_base_has_cancelled_the_step():
    model = network()
    optimizer = Lookahead(FAM(model.parameters(), lr=0.1), k=2)
    trained(optimizer, model, 3)
    slow = [state["slow"].clone() for state in optimizer.kept.values()]
    params = [p.detach().clone() for p in model.parameters()]
    next(model.parameters()).grad.fill_(torch.nan)
    optimizer.step()
    assert all(map(torch.equal, params, model.parameters()))
    assert all(map(torch.equal, slow, (state["slow"] for state in optimizer.kept.values())))


@pytest.mark.parametrize("part", [Lookahead, AGC, EMANesterov])
def test_a_wrapper_takes_an_optimizer_or_builds_one(part):
    models = [network(), network()]
    around = part(FAM(parameter_groups(models[0]), lr=0.3))
    config = {"name": names("optim")[[get("optim", n) for n in names("optim")].index(part)]}
    built = build_optimizer(config | {"base": "fam", "base_lr": 0.3}, parameter_groups(models[1]))
    assert trained(around, models[0], 12) == trained(built, models[1], 12)
    with pytest.raises(UserError, match="got an optimizer"):
        part(FAM(network().parameters()), lr=0.1)
    with pytest.raises(UserError, match="wears no momentum"):
        part(network().parameters(), partial(build, "momentum", {"name": "fam"}), base="muon")
    with pytest.raises(UserError, match="the state is not of"):
        around.load_state_dict(torch.optim.SGD(network().parameters()).state_dict())


def test_a_rule_reaches_the_base_of_a_wrapper():
    momentum = {"name": "constant", "beta": 0.5}
    optimizer = build_optimizer(
        {"name": "lookahead", "base": "adamw"}, network().parameters(), momentum
    )
    assert optimizer.base.rule.base.unique().tolist() == [0.5]


@pytest.mark.parametrize("part", PARTS)
def test_trains_a_compiled_model(part):
    plain, model = network(), network()
    compiled = torch.compile(model, backend="aot_eager")
    assert trained(part(plain.parameters()), plain, 5) == pytest.approx(
        trained(part(compiled.parameters()), compiled, 5), abs=1e-4
    )


@pytest.mark.parametrize("part", PARTS)
def test_steps_inside_of_a_compiled_function_are_taken_as_they_are(part):
    plain, model = network(), network()
    optimizer = part(model.parameters())
    optimizer.step = torch.compile(optimizer.step, backend="eager")
    assert trained(part(plain.parameters()), plain, 3) == pytest.approx(
        trained(optimizer, model, 3), abs=1e-5
    )


@pytest.mark.parametrize("part", PARTS)
def test_a_gradient_scaler_unscales_before_the_step_and_skips_overflow(part):
    plain, model = network(), network()
    optimizer, other = part(plain.parameters()), part(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(4):
        for net, taker in ((plain, optimizer), (model, other)):
            taker.zero_grad()
            loss = loss_of(net)
            (loss if net is plain else scaler.scale(loss)).backward()
        optimizer.step()
        scaler.step(other)
        scaler.update()
    assert all(
        torch.allclose(p, q, atol=1e-5)
        for p, q in zip(plain.parameters(), model.parameters(), strict=True)
    )
    before = [p.detach().clone() for p in model.parameters()]
    next(model.parameters()).grad.fill_(torch.inf)
    scaler.scale(torch.zeros(()))
    scaler.step(other)
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("part", PARTS)
def test_obeys_torchs_schedulers(part):
    for make in (
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, WarmupCosine(10, 2, 0.5, 0.1)),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=10, cycle_momentum=False),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
    ):
        model = network()
        optimizer = part(parameter_groups(model), lr=0.01)
        schedule, rates = make(optimizer), []
        trained(
            optimizer,
            model,
            10,
            lambda s=schedule, o=optimizer, r=rates: (s.step(), r.append(s.get_last_lr())),
        )
        assert rates[-1][0] == optimizer.param_groups[0]["lr"] < rates[2][0]


@pytest.mark.parametrize("part", PARTS)
def test_a_state_dict_goes_through_a_file_as_hugging_faces_trainer_does_it(part, tmp_path):
    models = [network(), network()]
    decayed = [[p for p in m.parameters() if p.ndim > 1] for m in models]
    rest = [[p for p in m.parameters() if p.ndim < 2] for m in models]
    first, second = (
        part(
            [{"params": decayed[i], "weight_decay": 0.1}, {"params": rest[i], "weight_decay": 0.0}],
            lr=0.01,
        )
        for i in range(2)
    )
    trained(first, models[0], 7)
    torch.save(first.state_dict(), tmp_path / "optimizer.pt")
    models[1].load_state_dict(models[0].state_dict())
    second.load_state_dict(
        torch.load(tmp_path / "optimizer.pt", map_location="cpu", weights_only=True)
    )
    assert trained(first, models[0], 7) == trained(second, models[1], 7)


def test_copies_go_their_own_way():
    for part in PARTS:
        model = network()
        optimizer = part(model.parameters())
        trained(optimizer, model, 2)
        other = copy.deepcopy(optimizer)
        kept = [p.detach().clone() for group in other.param_groups for p in group["params"]]
        trained(optimizer, model, 2)
        assert all(
            map(torch.equal, kept, (p for group in other.param_groups for p in group["params"]))
        )


def test_who_has_clipped_the_norm_spares_the_step_the_reading():
    model, other = network(), network()
    told, own = FAM(model.parameters(), lr=0.1), FAM(other.parameters(), lr=0.1)
    for step in range(6):
        for net, optimizer in ((model, told), (other, own)):
            optimizer.zero_grad()
            loss_of(net).backward()
            if step == 3:
                next(net.parameters()).grad[0, 0] = torch.nan
            norm = nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            if net is model:
                optimizer.found_inf = norm.isfinite().logical_not()
            optimizer.step()
    assert int(told.skipped) == int(own.skipped) == 1
    assert all(map(torch.equal, model.parameters(), other.parameters()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "name",
    [name for name in names("optim") if "no_host_read" in applicable("optim", get("optim", name))],
)
def test_never_waits_for_a_gpu(name):
    model = network().cuda()
    optimizer, (x, y) = (
        get("optim", name)(model.parameters()),
        (value.cuda() for value in example()),
    )
    for step in range(120):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        try:
            # buffers move to the device in the first step
            torch.cuda.set_sync_debug_mode("error" if step else "default")
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
