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
    FAM,
    AdamW,
    FAMAdamW,
    Lookahead,
    MaxFactor,
    SimpleFAM,
    parameter_groups,
)
from famx.optim._wrapper import Wrapper
from famx.registry import build, get, names
from famx.schedule import WarmupCosine
from famx.training.trainer_config import TrainerConfig

PARTS = [FAM, SimpleFAM, MaxFactor, FAMAdamW, AdamW, Lookahead]
WRAPPERS = [name for name in names("optim") if issubclass(get("optim", name), Wrapper)]


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


def train(optimizer, model, steps, schedule=None):
    """Returns the loss after some steps, each followed by one of the schedule."""
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return loss_of(model).item()


@pytest.mark.parametrize("name", names("optim"))
def test_the_table_of_groups_counts_every_parameter_once(name, tmp_path):
    model = network()
    optimizer = build_optimizer({"name": name}, parameter_groups(model))
    file = tmp_path / "param_groups.tsv"
    table = param_group_table(optimizer, file)
    _, *rows = file.read_text().splitlines()
    counts = [int(row.split("\t")[2]) for row in rows]
    assert len(counts) == table.row_count
    assert min(counts) > 0
    assert sum(counts) == sum(p.numel() for p in model.parameters())


def test_the_table_of_groups_has_the_rate_before_the_schedule(tmp_path):
    file = tmp_path / "param_groups.tsv"
    optimizer = build_optimizer({"name": "adamw"}, parameter_groups(network()))
    param_group_table(optimizer, file)
    before = file.read_bytes()
    # as a trainer that resumes finds them
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
        group["lr"] = 0.1 * group["lr"]
    param_group_table(optimizer, file)
    assert file.read_bytes() == before


@pytest.mark.parametrize("name", names("optim"))
def test_every_optimizer_lowers_the_loss_at_its_default_settings(name):
    model = network()
    optimizer = build_optimizer({"name": name}, parameter_groups(model))
    before = loss_of(model).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss_of(model).backward()
        clip_by_unit_norm(list(model.parameters()), TrainerConfig().unit_clip)
        optimizer.step()
    after = loss_of(model).item()
    assert after < before, f"from {before} to {after}"


@pytest.mark.parametrize("contract", contracts("optim"))
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_of_a_part_without_exemptions_keeps_every_contract(name, contract):
    wrapper = get("optim", name)

    class WrappedFAMAdamW(wrapper):
        def __init__(self, params, **options):
            super().__init__(params, base="fam_adamw", **options)

    if contract in vars(wrapper).get("exempt", {}):
        pytest.skip(f"{name} itself is exempt from {contract}")
    contracts("optim")[contract](WrappedFAMAdamW)


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_takes_an_optimizer_or_builds_one(name):
    wrapper = get("optim", name)
    model = network()
    # the wrapper is built with its defaults in a config
    defaults = vars(wrapper).get("trainer_defaults", {})
    optimizer = wrapper(FAM(parameter_groups(model), lr=0.3), **defaults)
    copied_model = network()
    config = {"name": name, "base": "fam", "lr": 0.3}
    built = build_optimizer(config, parameter_groups(copied_model))
    assert train(optimizer, model, 12) == train(built, copied_model, 12)
    with pytest.raises(UserError, match="wraps an optimizer that exists"):
        wrapper(FAM(network().parameters()), lr=0.1)
    rule = partial(build, "momentum", {"name": "fam"})
    with pytest.raises(UserError, match="NAdamW has one momentum for all tensors"):
        wrapper(network().parameters(), momentum=rule, base="nadamw")
    with pytest.raises(UserError, match="the state is not one of"):
        optimizer.load_state_dict(torch.optim.SGD(network().parameters()).state_dict())


def test_lookahead_is_unchanged_by_a_step_that_its_base_skips():
    model = network()
    optimizer = Lookahead(FAM(model.parameters(), lr=0.1), k=2)
    train(optimizer, model, 3)
    slow = [state["slow"].clone() for state in optimizer.wrapper_state.values()]
    params = [p.detach().clone() for p in model.parameters()]
    next(model.parameters()).grad.fill_(torch.nan)
    optimizer.step()
    assert all(map(torch.equal, params, model.parameters()))
    slow_after = [state["slow"] for state in optimizer.wrapper_state.values()]
    assert all(map(torch.equal, slow, slow_after))


def test_a_rule_reaches_the_base_of_a_wrapper():
    momentum = {"name": "constant", "beta": 0.5}
    config = {"name": "lookahead", "base": "fam_adamw"}
    optimizer = build_optimizer(config, network().parameters(), momentum)
    assert optimizer.rule.base.unique().tolist() == [0.5]


@pytest.mark.parametrize("part", PARTS)
def test_trains_a_compiled_model(part):
    model = network()
    expected = train(part(model.parameters()), model, 5)
    model = network()
    compiled = torch.compile(model, backend="aot_eager")
    assert train(part(compiled.parameters()), compiled, 5) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("part", PARTS)
def test_a_step_inside_a_compiled_function_is_the_same_step(part):
    model = network()
    expected = train(part(model.parameters()), model, 3)
    model = network()
    optimizer = part(model.parameters())
    optimizer.step = torch.compile(optimizer.step, backend="eager")
    assert train(optimizer, model, 3) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("part", PARTS)
def test_a_gradient_scaler_unscales_before_the_step_and_skips_overflow(part):
    model = network()
    train(part(model.parameters()), model, 4)
    scaled_model = network()
    optimizer = part(scaled_model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(4):
        optimizer.zero_grad()
        scaler.scale(loss_of(scaled_model)).backward()
        scaler.step(optimizer)
        scaler.update()
    for p, q in zip(model.parameters(), scaled_model.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5)
    before = [p.detach().clone() for p in scaled_model.parameters()]
    next(scaled_model.parameters()).grad.fill_(torch.inf)
    scaler.scale(torch.zeros(()))
    scaler.step(optimizer)
    assert all(map(torch.equal, before, scaled_model.parameters()))


def lambda_lr(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, WarmupCosine(10, 2, 0.5, 0.1))


def one_cycle_lr(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10, cycle_momentum=False)


def cosine_lr(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)


@pytest.mark.parametrize("make_schedule", [lambda_lr, one_cycle_lr, cosine_lr])
@pytest.mark.parametrize("part", PARTS)
def test_obeys_torchs_schedulers(part, make_schedule):
    model = network()
    optimizer = part(parameter_groups(model), lr=0.01)
    schedule = make_schedule(optimizer)
    train(optimizer, model, 3, schedule)
    early_rate = schedule.get_last_lr()[0]
    train(optimizer, model, 7, schedule)
    last_rate = schedule.get_last_lr()[0]
    assert last_rate == optimizer.param_groups[0]["lr"] < early_rate


def decay_groups(model):
    """Returns the two groups that Hugging Face's trainer makes."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [
        {"params": matrices, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("part", PARTS)
def test_a_state_dict_resumes_from_a_file_as_in_hugging_faces_trainer(part, tmp_path):
    model = network()
    optimizer = part(decay_groups(model), lr=0.01)
    train(optimizer, model, 7)
    path = tmp_path / "optimizer.pt"
    torch.save(optimizer.state_dict(), path)
    resumed_model = network()
    resumed_model.load_state_dict(model.state_dict())
    resumed = part(decay_groups(resumed_model), lr=0.01)
    resumed.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    assert train(optimizer, model, 7) == train(resumed, resumed_model, 7)


@pytest.mark.parametrize("part", PARTS)
def test_steps_do_not_change_a_copy(part):
    model = network()
    optimizer = part(model.parameters())
    train(optimizer, model, 2)
    copied = copy.deepcopy(optimizer)
    params = [p for group in copied.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in params]
    train(optimizer, model, 2)
    assert all(map(torch.equal, before, params))


def test_found_inf_of_a_norm_equals_the_check_of_step():
    models = [network(), network()]
    optimizers = [FAM(model.parameters(), lr=0.1) for model in models]
    for step in range(6):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(model).backward()
            if step == 3:
                next(model.parameters()).grad[0, 0] = torch.nan
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if model is models[0]:
                optimizer.found_inf = norm.isfinite().logical_not()
            optimizer.step()
    assert [int(optimizer.skipped) for optimizer in optimizers] == [1, 1]
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
@pytest.mark.parametrize(
    "name",
    [name for name in names("optim") if "no_host_read" in applicable("optim", get("optim", name))],
)
def test_never_waits_for_a_gpu(name):
    model = network().cuda()
    optimizer = get("optim", name)(model.parameters())
    x, y = (value.cuda() for value in example())
    for step in range(120):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        try:
            # buffers move to the device in the first step
            torch.cuda.set_sync_debug_mode("error" if step else "default")
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
