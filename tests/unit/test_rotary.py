"""Rotaries against explicit matrices, and their options."""

from math import cos, log10, sin

import pytest
import torch
from jaxtyping import config
from reference import rotary as reference
from torch.testing import assert_close

from famx.contracts import contracts
from famx.notation import UserError
from famx.registry import PARTS, build, names
from famx.rotary import _tables

T = 5
FIRST_POSITION = 1000
# options other than the defaults, for which the contracts must hold too
OPTIONS = [
    ("rope", {"learned": True}),
    ("compact", {"learned_freq": True}),
    ("givens", {"pairs": (0, 7, 3, 1, 10, 4)}),
    ("givens", {"rot_count": 2}),
    ("givens", {"pairs": (6, 2, 5, 11), "rot_count": 1}),
    ("projected", {"proj_dim": 6}),
    ("projected", {"proj_dim": 6, "scale": 0.5, "learned_freq": True}),
    ("quaternion", {"channels": 3}),
    ("quaternion", {"learned": True}),
    ("quaternion", {"channels": 3, "learned": True}),
    ("quaternion", {"scale": 0.5, "learned_freq": True}),
    ("quaternion", {"channels": 3, "learned": True, "learned_freq": True}),
    ("learned_rotations", {"rot_count": 1, "scale": 0.5, "reach": 0.0}),
]
# they build heads of sizes that the options above do not fit
FOR_ALL_HEAD_DIMS = ("odd_channel_unchanged", "head_dim_works_or_is_refused")


def with_options(name, **options):
    """Returns a subclass of a part that is built with these options."""
    part = PARTS["rotary"][name]

    class WithOptions(part):
        def __init__(self, head_dim: int):
            super().__init__(head_dim, **options)

    return WithOptions


def rotate_random(name, head_dim, **options):
    """Returns a rotary with changed parameters, an input, and its output from FIRST_POSITION on."""
    rotary = build("rotary", {"name": name, **options}, head_dim=head_dim)
    with torch.no_grad():
        for p in rotary.parameters():
            p += 0.3 * torch.randn_like(p)
    x = torch.randn(2, 3, T, head_dim)
    return rotary, x, rotary(x, FIRST_POSITION).double()


def assert_applies(y, matrices, x):
    expected = reference.apply_matrices([matrix.detach() for matrix in matrices], x)
    assert_close(y, expected, atol=2e-6, rtol=1e-6)


def spiral(n):
    z = torch.tensor([1 - (2 * k + 1) / n for k in range(n)], dtype=torch.float64)
    angle = torch.arange(n, dtype=torch.float64) * torch.pi * (3 - 5**0.5)
    radius = (1 - z**2).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], dim=1)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
@pytest.mark.parametrize(
    "contract", [name for name in contracts("rotary") if name not in FOR_ALL_HEAD_DIMS]
)
def test_contracts_hold_with_options(name, options, contract):
    contracts("rotary")[contract](with_options(name, **options))


@pytest.mark.parametrize("contract", FOR_ALL_HEAD_DIMS)
def test_learned_rope_works_for_all_head_dims(contract):
    contracts("rotary")[contract](with_options("rope", learned=True))


@pytest.mark.parametrize("learned", [False, True])
def test_rope_rotates_pairs_by_geometric_frequencies(learned):
    rope = build("rotary", {"name": "rope", "theta": 100.0, "learned": learned}, head_dim=5)
    x = torch.randn(1, 1, 4, 5)
    y = rope(x, 7)
    for t in range(4):
        for pair, frequency in enumerate((1.0, 0.1)):
            angle = (7 + t) * frequency
            channels = slice(2 * pair, 2 * pair + 2)
            a, b = x[0, 0, t, channels].tolist()
            expected = [a * cos(angle) - b * sin(angle), a * sin(angle) + b * cos(angle)]
            assert_close(y[0, 0, t, channels], torch.tensor(expected))
    assert torch.equal(y[..., 4], x[..., 4])


def test_rescale_stretches_the_slowest_pair_of_rope_and_not_the_fastest():
    original = build("rotary", {"name": "rope", "rescale": 1.0}, head_dim=8).frequencies
    stretched = build("rotary", {"name": "rope", "rescale": 4.0}, head_dim=8).frequencies
    assert stretched[0] == original[0] == 1.0
    assert stretched[-1] * 4 == pytest.approx(original[-1])
    assert build("rotary", {"name": "rope", "rescale": 4.0}, head_dim=2).frequencies == (1.0,)


def test_table_made_in_inference_mode_serves_training():
    rope = build("rotary", {"name": "rope", "theta": 123.0}, head_dim=4)
    with torch.inference_mode():
        rope(torch.randn(1, 1, 3, 4))
    rope(torch.randn(1, 1, 3, 4, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("name", names("rotary"))
def test_exported_and_compiled_graphs_work_for_all_lengths(name, monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    # tables made while a graph is traced must not remain in the cache
    monkeypatch.setattr(_tables, "_CACHE", {})
    rotary = build("rotary", {"name": name}, head_dim=12)
    short = torch.randn(2, 3, 9, 12)
    long = torch.randn(2, 3, 37, 12)
    lengths = torch.export.Dim("t", min=2, max=512)
    exported = torch.export.export(rotary, (short,), dynamic_shapes=({2: lengths},))
    assert_close(exported.module()(long), rotary(long))
    torch.compiler.reset()
    compiled = torch.compile(rotary, backend="eager", dynamic=True, fullgraph=True)
    for x in (short, long):
        assert_close(compiled(x), rotary(x))


def test_learned_tables_are_exact_at_far_positions():
    learned = build("rotary", {"name": "rope", "learned": True}, head_dim=8)
    constant = build("rotary", {"name": "rope"}, head_dim=8)
    constant.frequencies = tuple(learned.frequency.tolist())
    x = torch.randn(1, 1, 70, 8)
    assert_close(learned(x, 99_990), constant(x, 99_990), atol=2e-6, rtol=0)


@pytest.mark.parametrize("pairs", [(), (0, 7, 3, 1, 5, 4)])
def test_givens_rotates_its_planes(pairs):
    givens, x, y = rotate_random("givens", 9, pairs=pairs, theta=50.0)
    planes = list(zip(pairs[::2], pairs[1::2], strict=True)) or reference.neighbour_pairs(9)
    factors = givens.scale.detach().double() * givens.direction.detach().double().tanh()
    frequencies = [factor * 50.0 ** (-k / len(planes)) for k, factor in enumerate(factors)]
    matrices = []
    for t in range(FIRST_POSITION, FIRST_POSITION + T):
        angles = [t * frequency for frequency in frequencies]
        matrices.append(reference.plane_rotations(9, planes, angles))
    assert_applies(y, matrices, x)
    assert torch.equal(y[..., 8].float(), x[..., 8])


def test_compact_rotates_the_first_pairs_alone():
    _, x, y = rotate_random("compact", 8, rot_count=2, scale=0.5, theta=10.0)
    matrices = []
    for t in range(FIRST_POSITION, FIRST_POSITION + T):
        angles = [t * 0.5 * 10 ** (-k / 2) for k in range(2)]
        matrices.append(reference.plane_rotations(8, [(0, 1), (2, 3)], angles))
    assert_applies(y, matrices, x)
    assert torch.equal(y[..., 4:].float(), x[..., 4:])


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(
    ("size", "head_dim", "rotation", "channels"),
    [
        (3, 11, reference.axis_rotation, [(j, 3 + j, 6 + j) for j in range(3)]),
        (
            *(4, 14, reference.right_multiplication),
            [(2 * j, 2 * j + 1, 6 + 2 * j, 7 + 2 * j) for j in range(3)],
        ),
    ],
)
def test_quaternions_transform_their_blocks(size, head_dim, rotation, channels, learned):
    rotary, x, y = rotate_random("quaternion", head_dim, channels=size, learned=learned)
    axes = rotary.axis if learned else spiral(3)
    matrices = []
    for t in range(FIRST_POSITION, FIRST_POSITION + T):
        angles = [t * 10000.0 ** (-j / 3) for j in range(3)]
        matrices.append(reference.block_matrix(head_dim, channels, map(rotation, axes, angles)))
    assert_applies(y, matrices, x)


def test_projected_rotates_a_learned_subspace_about_its_diagonal():
    rotary, x, y = rotate_random("projected", 9, proj_dim=6, theta=20.0)
    rows = torch.linalg.qr(rotary.weight.double().T)[0].T
    assert_close(rows @ rows.T, torch.eye(6, dtype=torch.float64))
    w = torch.nn.functional.pad(rows, (0, 1))
    matrices = []
    for t in range(FIRST_POSITION, FIRST_POSITION + T):
        angles = [t * 20.0 ** (-j / 2) for j in range(2)]
        rotations = [reference.axis_rotation(torch.ones(3), angle) for angle in angles]
        in_subspace = reference.block_matrix(6, [(0, 1, 2), (3, 4, 5)], rotations)
        change = w.T @ (in_subspace - torch.eye(6, dtype=torch.float64)) @ w
        matrices.append(torch.eye(9, dtype=torch.float64) + change)
        assert_close(torch.linalg.det(matrices[-1]).item(), 1.0)
    assert_applies(y, matrices, x)


def test_projected_starts_orthonormal():
    weight = build("rotary", {"name": "projected", "proj_dim": 6}, head_dim=8).weight
    assert_close(weight @ weight.T, torch.eye(6))


def test_mel_frequencies_are_equally_spaced_in_mel():
    rotary = build("rotary", {"name": "mel", "high": 4000.0, "low": 20.0}, head_dim=10)
    mels = torch.tensor([2595 * log10(1 + f * 4000 / 700) for f in rotary.frequencies])
    assert_close(mels.diff(), mels.diff().mean().expand(4))
    assert rotary.frequencies[0] == pytest.approx(1)
    assert rotary.frequencies[-1] == pytest.approx(20 / 4000)


def test_variable_radii_start_as_rope_and_scale_the_pairs():
    rotary = build("rotary", {"name": "variable_radii"}, head_dim=9)
    rope = build("rotary", {"name": "rope"}, head_dim=9)
    x = torch.randn(2, 3, T, 9)
    expected = rope(x, FIRST_POSITION)
    assert_close(rotary(x, FIRST_POSITION), expected)
    with torch.no_grad():
        rotary.radius[1] = 3.0
    radii = torch.ones(9)
    radii[2:4] = torch.nn.functional.softplus(torch.tensor(3.0))
    assert_close(rotary(x, FIRST_POSITION), expected * radii)


def test_axial_rotates_by_row_and_by_column():
    _, x, y = rotate_random("axial", 9, width=3, theta=7.0)
    matrices = []
    for t in range(FIRST_POSITION, FIRST_POSITION + T):
        row, column = divmod(t, 3)
        angles = [row, row * 7.0**-0.5, column, column * 7.0**-0.5]
        matrices.append(reference.plane_rotations(9, reference.neighbour_pairs(9), angles))
    assert_applies(y, matrices, x)


def test_content_shift_is_bounded_by_the_reach():
    ranges = (0.5, 0.2, 0.1)
    rotary, x, y = rotate_random("learned_rotations", 9, freq_ranges=ranges, reach=3.0)
    speed = rotary.speed.detach().double()
    shift = 3 * (x.double() @ rotary.weight.detach().double().T).tanh()
    for b, h in ((0, 0), (1, 2)):
        matrices = []
        for t in range(T):
            rotations = speed * (FIRST_POSITION + t) + shift[b, h, t]
            angles = [rotation * factor for rotation in rotations for factor in ranges]
            pairs = reference.neighbour_pairs(9)
            matrices.append(reference.plane_rotations(9, pairs, angles[: len(pairs)]))
        assert_applies(y[b : b + 1, h : h + 1], matrices, x[b : b + 1, h : h + 1])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("projected", {"proj_dim": 6}),
        ("quaternion", {}),
        ("quaternion", {"channels": 3}),
        ("learned_rotations", {"reach": 0.0}),
        ("compact", {"rot_count": 3}),
    ],
)
def test_scale_multiplies_every_position(name, options):
    x = torch.randn(1, 2, 1, 12)
    torch.manual_seed(0)
    plain = build("rotary", {"name": name, **options}, head_dim=12)
    torch.manual_seed(0)
    fast = build("rotary", {"name": name, "scale": 4.0, **options}, head_dim=12)
    assert_close(fast(x, 7), plain(x, 28))


@pytest.mark.parametrize("name", ["projected", "quaternion"])
def test_learned_frequencies_start_as_those_that_are_not_learned(name):
    x = torch.randn(1, 2, T, 12)
    torch.manual_seed(0)
    plain = build("rotary", {"name": name, "scale": 0.3}, head_dim=12)
    torch.manual_seed(0)
    learned = build("rotary", {"name": name, "scale": 0.3, "learned_freq": True}, head_dim=12)
    assert "frequency" in dict(learned.named_parameters())
    assert_close(learned(x, 5), plain(x, 5))


def test_rotations_beyond_the_count_leave_their_channels_unrotated():
    options = {"freq_ranges": (1.0, 0.1), "rot_count": 2, "reach": 0.0}
    rotary = build("rotary", {"name": "learned_rotations", **options}, head_dim=12)
    x = torch.randn(1, 2, T, 12)
    y = rotary(x, 3)
    assert torch.equal(y[..., 8:], x[..., 8:])
    assert not torch.isclose(y[..., :8], x[..., :8]).all(-1).any()


@pytest.mark.parametrize("contract", ["depends_on_distance_alone", "every_gradient"])
def test_learned_rotations_without_reach_depend_on_the_distance_alone(contract):
    contracts("rotary")[contract](with_options("learned_rotations", reach=0.0))


@pytest.mark.parametrize(
    ("name", "head_dim", "options", "message"),
    [
        ("rope", 1, {}, "head_dim=1 must be at least 2"),
        ("quaternion", 3, {}, "head_dim=3 must be at least 4"),
        ("quaternion", 8, {"channels": 5}, "channels=5 must be 3 or 4"),
        ("givens", 4, {"pairs": [0, 4]}, r"pairs=\(0, 4\) must be .* channels of head_dim=4"),
        ("givens", 4, {"pairs": [0, 1, 1, 2]}, "pairs=.*different"),
        (
            *("compact", 4, {"rot_count": 3}),
            "rot_count=3 must be from 1 to 2, the pairs of head_dim=4",
        ),
        (
            *("projected", 4, {"proj_dim": 6}),
            "proj_dim=6 must be a multiple of 3 from 3 to 4, the even part of head_dim=4",
        ),
        ("axial", 3, {}, "head_dim=3 must be at least 4"),
        ("axial", 8, {"width": 0}, "width=0 must be greater than 0"),
        ("mel", 8, {"low": 9000.0}, "low=9000.0 must be less than high=8000.0"),
        ("learned_rotations", 8, {"freq_ranges": []}, r"freq_ranges=\(\) must be one or more"),
        ("learned_rotations", 8, {"reach": -1.0}, "reach=-1.0 must be at least 0"),
        ("learned_rotations", 8, {"rot_count": 2}, "rot_count=2 must be from 1 to 1"),
        ("quaternion", 8, {"scale": 0.0}, "scale=0.0 must be greater than 0"),
        ("projected", 8, {"scale": -1.0}, "scale=-1.0 must be greater than 0"),
    ],
)
def test_invalid_options_are_refused(name, head_dim, options, message):
    with pytest.raises(UserError, match=message):
        build("rotary", {"name": name, **options}, head_dim=head_dim)
