"""Metrics of parts reach their tags: `room/metric`."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from famx.contracts.attention import D, H
from famx.experiment.build import build_optimizer
from famx.monitoring.metrics import module_images, module_metrics, optimizer_metrics, to_host
from famx.nn.hooks import observe_last_batch, set_observed
from famx.nn.state import DecodeState
from famx.optim import parameter_groups
from famx.registry import PARTS, build, load_file

# rows of each picture over time that a block reports
IMAGES = {
    "myelinated": {"nodes": 3, "jumps": 2},
    "adaptive_span": {"span": H},
    "sliding_window": {"distance": H},
    "relative_force": {"distance": H},
    "integrated": {"span": H, "updated": 2},
    "content_update": {"updated": 2},
    "gated_pass": {"passed": H, "potential": H},
    "worm": {"nodes": 2, "jumps": 1, "span": H},
}
BLOCKS_WITH_DISTANCE = [("sliding_window", {"windows": (2, 9)}), ("relative_force", {})]


def observed_blocks(
    name: str, causal: bool = False, n_blocks: int = 1, **hyperparameters: object
) -> nn.ModuleList:
    rotary = build("rotary", {"name": "rope"}, head_dim=D // H)
    context = {"d_model": D, "n_heads": H, "rotary": rotary, "causal": causal}
    blocks = nn.ModuleList()
    for _ in range(n_blocks):
        blocks.append(build("attention", {"name": name, **hyperparameters}, **context))
    set_observed(blocks.eval(), True)
    return blocks


class Reporting(nn.Module):
    """A part that reports the metrics it is given."""

    def __init__(self, **metrics: Tensor):
        super().__init__()
        self.observed = True
        self.metrics = metrics


# parts


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", IMAGES)
def test_each_block_of_the_seed_reports_images_over_layers_and_time(name, causal):
    blocks = observed_blocks(name, causal, n_blocks=2)
    mask = torch.arange(7) < torch.tensor([5, 7])[:, None, None, None]
    x = torch.randn(2, 7, D)
    state = DecodeState(incremental=False)
    for block in blocks:
        x = x + block(x, mask=mask, state=state)
    images = module_images(blocks)
    shapes = {tag: tuple(image.values.shape) for tag, image in images.items()}
    expected = {}
    for metric, n_rows in IMAGES[name].items():
        expected[f"attention/over_time/{metric}"] = (2 * n_rows, 7)
    assert shapes == expected
    for image in images.values():
        layers = [row.partition(" ")[0].partition(".")[0] for row in image.rows]
        assert layers == sorted(layers)
        assert set(layers) == {"0", "1"}
        assert len(set(image.rows)) == len(image.values)
    assert not any("over_time" in tag for tag in module_metrics(blocks))


def test_images_are_of_the_last_sample():
    (block,) = observed_blocks("myelinated", causal=True, threshold=0.5)
    x = torch.randn(2, 7, D)
    with torch.no_grad():
        for p in block.parameters():
            p += 0.5 * torch.randn_like(p)
        block(x)
        of_both = block.metrics["over_time/nodes"]
        block(x[1:])
    assert torch.equal(of_both, block.metrics["over_time/nodes"])
    assert_close(of_both.mean(1), block.metrics["active"])
    assert 0 < of_both.mean() < 1, "the example skips nothing"


@pytest.mark.parametrize("causal", [False, True])
def test_distance_is_the_root_mean_square_distance_of_attention(causal):
    (block,) = observed_blocks("sliding_window", causal, windows=(2, 9))
    x = torch.randn(2, 90, D)
    block(x)
    # by hand, from the weights of each head within its window
    q, k, _ = block.project(x, None, None)
    distance = torch.arange(90)[:, None] - torch.arange(90)
    visible = torch.ones(90, 90, dtype=torch.bool)
    if causal:
        visible = visible.tril()
    within = torch.stack([(distance.abs() < window) & visible for window in (2, 2, 9, 9)])
    scores = q[1] @ k[1].mT / (D // H) ** 0.5
    weights = scores.masked_fill(~within, -torch.inf).softmax(-1)
    expected = (weights * distance.square()).sum(-1).sqrt()
    assert_close(block.metrics["over_time/distance"], expected, atol=1e-2, rtol=1e-3)
    assert_close(block.metrics["distance"], expected.mean(-1), atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("causal", [False, True])
def test_distance_of_equal_forces_is_that_of_uniform_attention(causal):
    (block,) = observed_blocks("relative_force", causal, hop_levels=1)
    with torch.no_grad():
        for p in block.parameters():
            p.zero_()
    block(torch.randn(2, 9, D))
    visible = torch.ones(9, 9).tril() if causal else torch.ones(9, 9)
    squared = (torch.arange(9.0)[:, None] - torch.arange(9.0)).square() * visible
    expected = (squared.sum(-1) / visible.sum(-1)).sqrt()
    assert_close(block.metrics["over_time/distance"], expected.expand(H, 9))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("name", "hyperparameters"), BLOCKS_WITH_DISTANCE)
def test_padding_has_no_distance(name, hyperparameters, causal):
    (block,) = observed_blocks(name, causal, **hyperparameters)
    x = torch.randn(2, 90, D)
    block(x[1:, :70])
    without_padding = block.metrics
    block(x, mask=torch.arange(90) < torch.tensor([90, 70])[:, None, None, None])
    tolerance = {"atol": 1e-2, "rtol": 1e-3}
    assert_close(block.metrics["distance"], without_padding["distance"], **tolerance)
    over_time = block.metrics["over_time/distance"]
    assert_close(over_time[:, :70], without_padding["over_time/distance"], **tolerance)
    assert over_time[:, 70:].isnan().all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("name", "hyperparameters"), BLOCKS_WITH_DISTANCE)
def test_a_query_that_may_attend_to_nothing_has_no_distance(name, hyperparameters, causal):
    (block,) = observed_blocks(name, causal, **hyperparameters)
    x = torch.randn(2, 90, D)
    mask = torch.ones(1, 1, 90, 90, dtype=torch.bool)
    mask[..., 5, :] = False
    block(x, mask=mask)
    over_time = block.metrics["over_time/distance"]
    assert_close(over_time.isnan(), (torch.arange(90) == 5).expand(H, -1))
    assert_close(block.metrics["distance"], over_time.nanmean(-1))
    block(x, mask=torch.zeros(1, 1, 1, 90, dtype=torch.bool))
    assert_close(block.metrics["distance"], torch.zeros(H))


@pytest.mark.parametrize(("name", "hyperparameters"), BLOCKS_WITH_DISTANCE)
def test_distance_is_the_same_under_autocast(name, hyperparameters):
    (block,) = observed_blocks(name, **hyperparameters)
    x = torch.randn(1, 400, D)
    block(x)
    expected = block.metrics
    with torch.autocast("cpu", dtype=torch.bfloat16):
        block(x)
    for metric in ("distance", "over_time/distance"):
        assert_close(block.metrics[metric], expected[metric], atol=0.03, rtol=0)


def test_a_refiner_reports_its_table_and_its_best_action():
    (block,) = observed_blocks("integrated")
    refiner = block.near.refiner
    refiner.table.add_(torch.randn_like(refiner.table))
    block(torch.randn(2, 7, D))
    metrics = module_metrics(block)
    assert torch.equal(metrics["attention/q_values"], refiner.table)
    action = refiner.best_action(refiner.state)
    assert metrics["attention/shift"] == refiner.shifts[action].mean()


# tags

USER_PART = """
import torch
from famx.registry import register

class Inner(torch.nn.Module):
    observed = False
    metrics = {{"depth": torch.tensor({value})}}

@register("{room}")
class UserPart(torch.nn.Module):
    observed = False
    metrics = {{"size": torch.tensor({value})}}

    def __init__(self):
        super().__init__()
        self.inner = Inner()
"""


def test_metrics_of_a_user_part_have_the_room_that_it_registers_in(tmp_path, monkeypatch):
    blocks = nn.ModuleDict()
    for value, room in enumerate(("attention", "layer")):
        monkeypatch.setitem(PARTS, room, dict(PARTS[room]))
        file = tmp_path / f"user_{room}.py"
        file.write_text(USER_PART.format(value=value, room=room))
        load_file(file)
        blocks[room] = PARTS[room][f"user_{room}"]()
    blocks["layer"].block = observed_blocks("myelinated")[0]
    blocks["layer"].block(torch.randn(2, 7, D))
    metrics = module_metrics(blocks)
    expected = {"attention/size": 0, "attention/depth": 0, "layer/size": 1, "layer/depth": 1}
    assert expected.items() <= metrics.items()
    assert "attention/active" in metrics
    # a class of a script, too; outside of any part it is of the model
    for cls in (type(blocks["attention"]), type(blocks["attention"].inner)):
        cls.__module__ = "__main__"
    assert module_metrics(blocks).keys() == metrics.keys()
    assert module_metrics(blocks["attention"].inner).keys() == {"model/depth"}


def test_scalars_and_vectors_are_averaged_over_parts():
    first = Reporting(scalar=torch.tensor(1.0), vector=torch.tensor([1.0, 2.0]))
    second = Reporting(scalar=torch.tensor(3.0), vector=torch.tensor([3.0, 6.0]))
    metrics = module_metrics(nn.ModuleList([first, second]))
    assert metrics.keys() == {"model/scalar", "model/vector"}
    assert metrics["model/scalar"] == 2
    assert metrics["model/vector"].tolist() == [2, 4]


def test_matrices_of_several_parts_are_not_averaged():
    matrices = torch.randn(2, 4, 3)
    model = nn.ModuleDict({"a": Reporting(map=matrices[0]), "b": Reporting(map=matrices[1])})
    metrics = module_metrics(model)
    assert metrics.keys() == {"model/map/a", "model/map/b"}
    assert torch.equal(metrics["model/map/a"], matrices[0])
    assert torch.equal(metrics["model/map/b"], matrices[1])
    del model["b"]
    assert module_metrics(model).keys() == {"model/map"}


def test_attention_maps_of_two_layers_have_an_image_each():
    blocks = observed_blocks("integrated", n_blocks=2)
    for block in blocks:
        table = block.near.refiner.table
        table.add_(torch.randn_like(table))
        block(torch.randn(2, 7, D))
    metrics = module_metrics(blocks)
    for i, block in enumerate(blocks):
        tag = f"attention/q_values/{i}.near.refiner"
        assert torch.equal(metrics[tag], block.near.refiner.table)
    assert "attention/q_values" not in metrics


def test_vectors_of_different_sizes_are_joined():
    layers = nn.ModuleList(
        [*observed_blocks("myelinated", n_layers=2), *observed_blocks("worm", n_layers=4)]
    )
    for layer in layers:
        layer(torch.randn(2, 7, D))
    assert module_metrics(layers)["attention/active"].shape == (6,)
    assert module_images(layers)["attention/over_time/nodes"].values.shape == (6, 7)


def test_images_of_different_lengths_are_padded_with_nan():
    parts = {"a": torch.ones(2, 5), "b": torch.ones(1, 3)}
    model = nn.ModuleDict({name: Reporting(**{"over_time/x": x}) for name, x in parts.items()})
    (image,) = module_images(model).values()
    assert image.rows == ("a 1", "a 2", "b 1")
    assert image.values[:2].eq(1).all()
    assert image.values[2].isnan().tolist() == [False, False, False, True, True]


def test_only_the_last_batch_is_observed():
    (block,) = observed_blocks("multihead")
    set_observed(block, False)
    observed = [(batch, block.observed) for batch in observe_last_batch(block, "abc")]
    assert observed == [("a", False), ("b", False), ("c", True)]
    assert not block.observed
    assert list(observe_last_batch(block, "")) == []


# optimizers


def one_observed_step(name: str) -> torch.optim.Optimizer:
    net = nn.Linear(40, 40)
    optimizer = build_optimizer({"name": name}, parameter_groups(net))
    optimizer.observed = True
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    return optimizer


def test_metrics_of_a_momentum_rule_are_not_those_of_its_optimizer():
    optimizer = one_observed_step("fam")
    metrics = optimizer_metrics(optimizer)
    for name, value in optimizer.metrics.items():
        assert metrics[f"optim/{name}"] is value
    rooms = {tag.partition("/")[0] for tag in metrics}
    assert rooms == {"optim", "momentum"}


def test_an_optimizer_without_metrics_has_none():
    net = nn.Linear(3, 2)
    assert optimizer_metrics(torch.optim.SGD(net.parameters(), lr=0.1)) == {}
    assert not any(
        tag.startswith("momentum/") for tag in optimizer_metrics(one_observed_step("sgd"))
    )


# the host


def test_to_host_returns_floats_and_tensors_of_the_same_values():
    metrics = {
        "a/scalar": torch.tensor(1.5),
        "a/vector": torch.tensor([1, 2]),
        "b/matrix": torch.randn(2, 3, requires_grad=True),
        "b/flag": torch.tensor(True),
    }
    on_host = to_host(metrics)
    assert list(on_host) == list(metrics)
    assert on_host["a/scalar"] == 1.5
    assert isinstance(on_host["b/flag"], float)
    assert on_host["a/vector"].tolist() == [1, 2]
    assert torch.equal(on_host["b/matrix"], metrics["b/matrix"].detach())
    assert not on_host["b/matrix"].requires_grad
    assert to_host({}) == {}
