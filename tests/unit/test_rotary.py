from math import cos, log10, sin

import pytest
import torch
from jaxtyping import config
from reference import rotary as plain
from torch.testing import assert_close

from famx.contracts import applicable, contracts
from famx.notation import UserError
from famx.registry import PARTS, build, names
from famx.rotary import base


@pytest.mark.parametrize(
    ("name", "law"),
    [
        (name, law)
        for name in names("rotary")
        for law in applicable("rotary", PARTS["rotary"][name])
    ],
)
def test_law(name, law):
    contracts("rotary")[law](PARTS["rotary"][name])


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
    plain, wide = (
        build("rotary", {"name": "rope", "rescale": s}, head_dim=8).frequencies for s in (1.0, 4.0)
    )
    assert wide[0] == plain[0] == 1.0
    assert wide[-1] * 4 == pytest.approx(plain[-1])
    assert build("rotary", {"name": "rope", "rescale": 4.0}, head_dim=2).frequencies == (1.0,)


@pytest.mark.parametrize("law", contracts("rotary"))
def test_learned_rope_keeps_the_laws_too(law):
    class Learned(PARTS["rotary"]["rope"]):
        def __init__(self, head_dim: int):
            super().__init__(head_dim, learned=True)

    contracts("rotary")[law](Learned)


def test_a_table_made_in_inference_serves_training():
    rope = build("rotary", {"name": "rope", "theta": 123.0}, head_dim=4)
    with torch.inference_mode():
        rope(torch.randn(1, 1, 3, 4))
    rope(torch.randn(1, 1, 3, 4, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("name", names("rotary"))
def test_lengths_may_be_free_in_a_graph_and_no_table_is_left_of_its_making(name, monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    monkeypatch.setattr(base, "_CONSTANTS", {})
    rotary, short, long = (
        build("rotary", {"name": name}, head_dim=12),
        torch.randn(2, 3, 9, 12),
        torch.randn(2, 3, 37, 12),
    )
    exported = torch.export.export(
        rotary, (short,), dynamic_shapes=({2: torch.export.Dim("t", min=2, max=512)},)
    )
    assert_close(exported.module()(long), rotary(long))
    torch.compiler.reset()
    compiled = torch.compile(rotary, backend="eager", dynamic=True, fullgraph=True)
    for x in (short, long):
        assert_close(compiled(x), rotary(x))


def test_rope_refuses_a_single_channel():
    with pytest.raises(UserError, match="head_dim=1 must be at least 2"):
        build("rotary", {"name": "rope"}, head_dim=1)


T, FROM = 5, 1000
VARIANTS = {
    "compact": [{"learned_freq": True}],
    "givens": [
        {"pairs": (0, 7, 3, 1, 10, 4)},
        {"rot_count": 2},
        {"pairs": (6, 2, 5, 11), "rot_count": 1},
    ],
    "projected": [{"proj_dim": 6}],
    "quaternion": [{"channels": 3}, {"learned": True}, {"channels": 3, "learned": True}],
}


@pytest.mark.parametrize(
    ("name", "hyper"), [(name, hyper) for name in VARIANTS for hyper in VARIANTS[name]]
)
@pytest.mark.parametrize(
    "law",
    [name for name in contracts("rotary") if name not in ("leftover_channels", "refuses_or_turns")],
)
def test_other_hyperparameters_keep_the_laws_too(name, hyper, law):
    part = PARTS["rotary"][name]
    contracts("rotary")[law](
        type(
            "Other",
            (part,),
            {"__init__": lambda self, head_dim: part.__init__(self, head_dim, **hyper)},
        )
    )


def turned(name, head_dim, **hyper):
    """A rotary whose parameters are not as they start, an input, and what comes of it from position `FROM` on."""
    rotary = build("rotary", {"name": name, **hyper}, head_dim=head_dim)
    with torch.no_grad():
        for p in rotary.parameters():
            p += 0.3 * torch.randn_like(p)
    x = torch.randn(2, 3, T, head_dim)
    return rotary, x, rotary(x, FROM).double()


def same(y, matrices, x):
    assert_close(y, plain.applied([m.detach() for m in matrices], x), atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("pairs", [(), (0, 7, 3, 1, 5, 4)])
def test_givens_turns_its_planes_one_after_another(pairs):
    givens, x, y = turned("givens", 9, pairs=pairs, theta=50.0)
    planes = list(zip(pairs[::2], pairs[1::2], strict=True)) or plain.neighbours(9)
    direction, scale = givens.direction.detach().double().tanh(), givens.scale.detach().double()
    speeds = [scale * direction[k] * 50.0 ** (-k / len(planes)) for k in range(len(planes))]
    same(y, [plain.planes(9, planes, [(FROM + t) * s for s in speeds]) for t in range(T)], x)
    assert torch.equal(y[..., 8].float(), x[..., 8])


def test_compact_turns_the_first_planes_only():
    _, x, y = turned("compact", 8, rot_count=2, scale=0.5, theta=10.0)
    angles = [[(FROM + t) * 0.5 * 10 ** (-k / 2) for k in range(2)] for t in range(T)]
    same(y, [plain.planes(8, [(0, 1), (2, 3)], a) for a in angles], x)
    assert torch.equal(y[..., 4:].float(), x[..., 4:])


@pytest.mark.parametrize("learned", [False, True])
def test_quaternions_turn_three_channels_about_their_axis(learned):
    rotary, x, y = turned("quaternion", 11, channels=3, learned=learned)
    axes = rotary.axis if learned else spiral(3)
    angles = [[(FROM + t) * 10000.0 ** (-j / 3) for j in range(3)] for t in range(T)]
    channels = [(j, 3 + j, 6 + j) for j in range(3)]
    same(y, [plain.blocks(11, channels, map(plain.about, axes, a)) for a in angles], x)


@pytest.mark.parametrize("learned", [False, True])
def test_quaternions_multiply_four_channels(learned):
    rotary, x, y = turned("quaternion", 14, channels=4, learned=learned)
    axes = rotary.axis if learned else spiral(3)
    angles = [[(FROM + t) * 10000.0 ** (-j / 3) for j in range(3)] for t in range(T)]
    channels = [(2 * j, 2 * j + 1, 6 + 2 * j, 6 + 2 * j + 1) for j in range(3)]
    same(y, [plain.blocks(14, channels, map(plain.times, axes, a)) for a in angles], x)


def spiral(n):
    z = torch.tensor([1 - (2 * k + 1) / n for k in range(n)], dtype=torch.float64)
    angle = torch.arange(n, dtype=torch.float64) * torch.pi * (3 - 5**0.5)
    return torch.stack([(1 - z**2).sqrt() * angle.cos(), (1 - z**2).sqrt() * angle.sin(), z], dim=1)


def test_projected_turns_a_learned_subspace_about_its_diagonal():
    rotary, x, y = turned("projected", 9, proj_dim=6, theta=20.0)
    rows = torch.linalg.qr(rotary.weight.double().T)[0].T
    assert_close(rows @ rows.T, torch.eye(6, dtype=torch.float64))
    w = torch.nn.functional.pad(rows, (0, 1))
    matrices = []
    for t in range(T):
        angles = [(FROM + t) * 20.0 ** (-j / 2) for j in range(2)]
        small = plain.blocks(
            6, [(0, 1, 2), (3, 4, 5)], [plain.about(torch.ones(3), a) for a in angles]
        )
        matrices.append(
            torch.eye(9, dtype=torch.float64)
            + w.T @ (small - torch.eye(6, dtype=torch.float64)) @ w
        )
        assert_close(torch.linalg.det(matrices[-1]).item(), 1.0)
    same(y, matrices, x)


def test_projected_starts_orthonormal():
    weight = build("rotary", {"name": "projected", "proj_dim": 6}, head_dim=8).weight
    assert_close(weight @ weight.T, torch.eye(6))


def test_mel_spaces_its_frequencies_evenly_in_mel():
    rotary = build("rotary", {"name": "mel", "high": 4000.0, "low": 20.0}, head_dim=10)
    mels = torch.tensor([2595 * log10(1 + f * 4000 / 700) for f in rotary.frequencies])
    assert_close(mels.diff(), mels.diff().mean().expand(4))
    assert rotary.frequencies[0] == pytest.approx(1) and rotary.frequencies[-1] == pytest.approx(
        20 / 4000
    )


def test_variable_radii_start_as_rope_and_then_weigh_the_pairs():
    rotary, x = build("rotary", {"name": "variable_radii"}, head_dim=9), torch.randn(2, 3, T, 9)
    rope = build("rotary", {"name": "rope"}, head_dim=9)(x, FROM)
    assert_close(rotary(x, FROM), rope)
    with torch.no_grad():
        rotary.radius[1] = 3.0
    weights = torch.ones(9)
    weights[2:4] = torch.nn.functional.softplus(torch.tensor(3.0))
    assert_close(rotary(x, FROM), rope * weights)


def test_axial_turns_by_row_and_by_column():
    _, x, y = turned("axial", 9, width=3, theta=7.0)
    angles = []
    for t in range(FROM, FROM + T):
        row, column = divmod(t, 3)
        angles.append([row, row * 7.0**-0.5, column, column * 7.0**-0.5])
    same(y, [plain.planes(9, plain.neighbours(9), a) for a in angles], x)


def test_content_moves_a_position_by_at_most_the_reach():
    rotary, x, y = turned("learned_rotations", 9, freq_ranges=(0.5, 0.2, 0.1), reach=3.0)
    speed, weight = (p.detach().double() for p in (rotary.speed, rotary.weight))
    moved = 3 * (x.double() @ weight.T).tanh()
    for b, h in ((0, 0), (1, 2)):
        rotations = [speed * (FROM + t) + moved[b, h, t] for t in range(T)]
        angles = [[r * f for r in rotation for f in (0.5, 0.2, 0.1)][:4] for rotation in rotations]
        matrices = [plain.planes(9, plain.neighbours(9), a) for a in angles]
        same(y[b : b + 1, h : h + 1], matrices, x[b : b + 1, h : h + 1])


def test_without_reach_learned_rotations_depend_on_the_distance_alone():
    class Still(PARTS["rotary"]["learned_rotations"]):
        def __init__(self, head_dim: int):
            super().__init__(head_dim, reach=0.0)

    contracts("rotary")["distance_law"](Still)
    contracts("rotary")["every_gradient"](Still)


def test_learned_tables_are_exact_far_out():
    rope = build("rotary", {"name": "rope", "learned": True}, head_dim=8)
    fixed = build("rotary", {"name": "rope"}, head_dim=8)
    fixed.frequencies = tuple(rope.frequency.tolist())
    x = torch.randn(1, 1, 70, 8)
    assert_close(rope(x, 99_990), fixed(x, 99_990), atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "head_dim", "hyper", "sentence"),
    [
        ("quaternion", 3, {}, "head_dim=3 must be at least 4"),
        ("quaternion", 8, {"channels": 5}, "channels=5 must be 3 or 4"),
        ("givens", 4, {"pairs": [0, 4]}, r"pairs=\(0, 4\) must be .* channels of head_dim=4"),
        ("givens", 4, {"pairs": [0, 1, 1, 2]}, "pairs=.*different"),
        (
            "compact",
            4,
            {"rot_count": 3},
            "rot_count=3 must be from 1 to 2, the pairs of head_dim=4",
        ),
        (
            "projected",
            4,
            {"proj_dim": 6},
            "proj_dim=6 must be a multiple of 3 from 3 to 4, the even part of head_dim=4",
        ),
        ("axial", 3, {}, "head_dim=3 must be at least 4"),
        ("axial", 8, {"width": 0}, "width=0 must be greater than 0"),
        ("mel", 8, {"low": 9000.0}, "low=9000.0 must be less than high=8000.0"),
        ("learned_rotations", 8, {"freq_ranges": []}, r"freq_ranges=\(\) must be some numbers"),
    ],
)
def test_a_rotary_refuses_what_it_cannot_do(name, head_dim, hyper, sentence):
    with pytest.raises(UserError, match=sentence):
        build("rotary", {"name": name, **hyper}, head_dim=head_dim)
