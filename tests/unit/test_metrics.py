import pytest
import torch
from torch import nn
from torch.testing import assert_close

from famx.contracts.attention import D, H
from famx.monitoring.heatmap import GREY, HEAT, ROW, WIDTH, heat_map
from famx.monitoring.metrics import HeatMap, module_images, module_metrics, observe_last_batch
from famx.nn.hooks import set_observed
from famx.registry import PARTS, build, load_file

PICTURES = {
    "myelinated": {"nodes": 3, "jumps": 2},
    "adaptive_span": {"span": H},
    "sliding_window": {"distance": H},
    "relative_force": {"distance": H},
    "integrated": {"span": H, "updated": 2},
    "content_update": {"updated": 2},
    "gated_pass": {"passed": H, "potential": H},
    "worm": {"nodes": 2, "jumps": 1, "span": H},
}

DISTANT = [("sliding_window", {"windows": (2, 9)}), ("relative_force", {})]


def watched(name, causal=False, n=1, **hyper):
    rotary = build("rotary", {"name": "rope"}, head_dim=D // H)
    context = {"d_model": D, "n_heads": H, "rotary": rotary, "causal": causal}
    blocks = nn.ModuleList(
        build("attention", {"name": name, **hyper}, **context) for _ in range(n)
    ).eval()
    set_observed(blocks, True)
    return blocks


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", PICTURES)
def test_each_block_of_the_source_shows_what_it_did_over_layers_and_time(name, causal):
    blocks, mask = (
        watched(name, causal, n=2),
        torch.arange(7) < torch.tensor([5, 7])[:, None, None, None],
    )
    x, state = torch.randn(2, 7, D), {"whole": True}
    for block in blocks:
        x = x + block(x, mask=mask, state=state)
    found = module_images(blocks)
    assert {tag: picture.values.shape for tag, picture in found.items()} == {
        f"attention/over_time/{quantity}": (2 * rows, 7)
        for quantity, rows in PICTURES[name].items()
    }
    for picture in found.values():
        named = [row.split()[0].partition(".")[0] for row in picture.rows]
        assert (
            named == sorted(named)
            and set(named) == {"0", "1"}
            and len(set(picture.rows)) == len(picture.values)
        )
    assert not any("over_time" in tag for tag in module_metrics(blocks))


def test_pictures_are_of_the_last_sample():
    (block,), x = watched("myelinated", causal=True, threshold=0.5), torch.randn(2, 7, D)
    with torch.no_grad():
        for p in block.parameters():
            p += 0.5 * torch.randn_like(p)
        block(x)
        both = block.metrics["over_time/nodes"]
        block(x[1:])
    assert torch.equal(both, block.metrics["over_time/nodes"])
    assert_close(both.mean(1), block.metrics["active"])
    assert 0 < both.mean() < 1, "the example shows no skipping"


@pytest.mark.parametrize("causal", [False, True])
def test_a_distance_is_how_far_a_head_looks(causal):
    (block,), x, seen = (
        watched("sliding_window", causal, windows=(2, 9)),
        torch.randn(2, 90, D),
        torch.ones(90, 90),
    )
    block(x)
    q, k, _ = block.project(x, None, None)
    apart = torch.arange(90)[:, None] - torch.arange(90)
    near = torch.stack(
        [(apart.abs() < w) & (seen.tril().bool() if causal else True) for w in (2, 2, 9, 9)]
    )
    weights = (q[1] @ k[1].mT / (D // H) ** 0.5).masked_fill(~near, -torch.inf).softmax(-1)
    expected = (weights * apart.square()).sum(-1).sqrt()
    assert_close(block.metrics["over_time/distance"], expected, atol=1e-2, rtol=1e-3)
    assert_close(block.metrics["distance"], expected.mean(-1), atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("causal", [False, True])
def test_a_force_that_is_the_same_everywhere_looks_at_all_alike(causal):
    (block,) = watched("relative_force", causal, hop_levels=1)
    with torch.no_grad():
        for p in block.parameters():
            p.zero_()
    block(torch.randn(2, 9, D))
    seen = torch.ones(9, 9).tril() if causal else torch.ones(9, 9)
    apart = (torch.arange(9.0)[:, None] - torch.arange(9.0)).square() * seen
    assert_close(
        block.metrics["over_time/distance"], (apart.sum(-1) / seen.sum(-1)).sqrt().expand(H, 9)
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("name", "hyper"), DISTANT)
def test_padding_and_a_query_that_sees_nothing_have_no_distance(name, hyper, causal):
    (block,), x = watched(name, causal, **hyper), torch.randn(2, 90, D)
    block(x[1:, :70])
    alone = block.metrics
    block(x, mask=torch.arange(90) < torch.tensor([90, 70])[:, None, None, None])
    assert_close(block.metrics["distance"], alone["distance"], atol=1e-2, rtol=1e-3)
    assert_close(
        block.metrics["over_time/distance"][:, :70],
        alone["over_time/distance"],
        atol=1e-2,
        rtol=1e-3,
    )
    assert block.metrics["over_time/distance"][:, 70:].isnan().all()
    blind = torch.ones(1, 1, 90, 90, dtype=torch.bool)
    blind[..., 5, :] = False
    block(x, mask=blind)
    shown = block.metrics["over_time/distance"]
    assert_close(shown.isnan(), (torch.arange(90) == 5).expand(H, -1))
    assert_close(block.metrics["distance"], shown.nanmean(-1))
    block(x, mask=torch.zeros(1, 1, 1, 90, dtype=torch.bool))
    assert_close(block.metrics["distance"], torch.zeros(H))


@pytest.mark.parametrize(("name", "hyper"), DISTANT)
def test_a_distance_is_the_same_under_autocast(name, hyper):
    (block,), x = watched(name, **hyper), torch.randn(1, 400, D)
    block(x)
    expected = block.metrics
    with torch.autocast("cpu", dtype=torch.bfloat16):
        block(x)
    for metric in ("distance", "over_time/distance"):
        assert_close(block.metrics[metric], expected[metric], atol=0.03, rtol=0)


def test_a_refiner_shows_what_it_has_learned():
    (block,) = watched("integrated")
    refiner = block.near.span[1]
    refiner.table.add_(torch.randn_like(refiner.table))
    block(torch.randn(2, 7, D))
    found = module_metrics(block)
    assert torch.equal(found["attention/q_values"], refiner.table)
    assert found["attention/shift"] == refiner.shifts[refiner.best(refiner.state)]


OWN = """
import torch
from famx.registry import register

class Inner(torch.nn.Module):
    metrics = {{"depth": torch.tensor({0})}}

@register("{1}")
class Own(torch.nn.Module):
    metrics = {{"size": torch.tensor({0})}}

    def __init__(self):
        super().__init__()
        self.inner = Inner()
"""


def test_what_own_parts_show_is_of_the_room_that_they_register_in(tmp_path, monkeypatch):
    blocks = nn.ModuleDict()
    for value, room in enumerate(("attention", "layer")):
        monkeypatch.setitem(PARTS, room, dict(PARTS[room]))
        (tmp_path / f"own_{room}.py").write_text(OWN.format(value, room))
        load_file(tmp_path / f"own_{room}.py")
        blocks[room] = PARTS[room][f"own_{room}"]()
    blocks["layer"].block = watched("myelinated")[0]
    blocks["layer"].block(torch.randn(2, 7, D))
    found = {"attention/size": 0, "attention/depth": 0, "layer/size": 1, "layer/depth": 1}
    shown = module_metrics(blocks)
    assert found.items() <= shown.items() and "attention/active" in shown
    for cls in (type(blocks["attention"]), type(blocks["attention"].inner)):
        cls.__module__ = "__main__"  # as of a script
    assert module_metrics(blocks).keys() == shown.keys()
    assert module_metrics(blocks["attention"].inner).keys() == {"model/depth"}, "of no room"


def test_layers_of_different_sizes_are_shown_side_by_side():
    layers = nn.ModuleList([*watched("myelinated", n_layers=2), *watched("worm", n_layers=4)])
    for layer in layers:
        layer(torch.randn(2, 7, D))
    assert module_metrics(layers)["attention/active"].shape == (6,)
    assert module_images(layers)["attention/over_time/nodes"].values.shape == (6, 7)


def test_only_the_last_batch_is_watched():
    (block,) = watched("multihead")
    set_observed(block, False)
    assert [(batch, block.observed) for batch in observe_last_batch(block, "abc")] == [
        ("a", False),
        ("b", False),
        ("c", True),
    ]
    assert not block.observed
    assert list(observe_last_batch(block, "")) == []


def colours(values):
    """Of the picture of a matrix, from the middle of each cell."""
    drawn = torch.from_numpy(heat_map(HeatMap(values, tuple("abc"[: len(values)]), "")))
    cell = max(2, WIDTH // values.shape[1])
    places = drawn.shape[1] - cell // 2 - cell * torch.arange(values.shape[1]).flip(0)
    return drawn[ROW // 2 : len(values) * ROW : ROW, places] / 255


def shade(colour):
    return torch.tensor(colour).mul(255).round() / 255


def test_what_is_the_same_everywhere_is_pale_but_dark_where_it_is_nothing():
    for value, shown in ((1.0, HEAT[-1]), (0.0, HEAT[0]), (-1.0, HEAT[0])):
        assert_close(colours(torch.full((2, 2), value)), shade(shown).expand(2, 2, 3))
    rounded = torch.tensor([[0.9, 0.9 + 1e-7]])
    assert_close(colours(rounded), shade(HEAT[-1]).expand(1, 2, 3))


def test_colours_are_spread_over_what_is_usual():
    values = torch.linspace(-1, 1, 101).repeat(3, 1)
    outlying = values.clone()
    outlying[1, -1] = 1e9
    assert_close(colours(outlying), colours(values), atol=0.05, rtol=0)


def test_equal_factors_are_equal_steps_where_values_span_many():
    assert_close(
        colours(torch.tensor([[1e-6, 1e-4, 1e-2]])), colours(torch.tensor([[-1.0, 0.0, 1.0]]))
    )
    assert_close(colours(torch.tensor([[0.0, 1e-6, 1.0]]))[:, 0], shade(HEAT[0])[None])


def test_what_is_not_defined_is_neither_dark_nor_pale():
    found = colours(torch.tensor([[0.0, torch.nan, 1.0]]))
    assert_close(found, torch.stack([shade(HEAT[0]), shade([GREY] * 3), shade(HEAT[-1])])[None])
    assert_close(colours(torch.full((1, 1), torch.inf)), shade([GREY] * 3)[None, None])
